"""Evaluation on labelled images: probes, fine-tuning, predictions."""
