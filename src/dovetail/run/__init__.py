"""Pre-training: options, run folder, resuming, building the network, and the run itself."""
