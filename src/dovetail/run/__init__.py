"""The main job: options, the run's folder, resuming, the network, and pre-training itself."""
