"""Saving and loading weights: exported folders, match reports, formats of other libraries."""
