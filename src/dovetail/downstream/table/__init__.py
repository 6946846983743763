"""Tables of trials: running, saving and comparing fine-tuning trials."""
