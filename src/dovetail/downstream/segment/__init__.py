"""Semantic segmentation: options, model, loop, job."""
