"""Frozen features: nearest neighbours and linear classifiers."""
