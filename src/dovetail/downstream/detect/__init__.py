"""Detection and instance segmentation: options, model, loop, job."""
