"""WebDataset shards: writing and reading."""
