"""Shards: writing them, and reading them in order."""
