"""What a run is worth on labelled images: probes, fine-tuning, predictions."""
