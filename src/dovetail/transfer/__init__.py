"""Fine-tuning and evaluation protocols."""
