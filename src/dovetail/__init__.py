"""Dovetail: pre-train whole dense-prediction models on unlabelled images."""

__version__ = "0.1.0"
