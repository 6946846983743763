"""Training: learner, engine, optimisers, checkpoints, monitors."""
