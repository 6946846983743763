"""Classification: options, model, loop, job."""
