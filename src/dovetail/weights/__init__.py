"""Weights in and out: exported folders, match reports, formats of other libraries."""
