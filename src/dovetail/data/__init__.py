"""Image sources: reading, decoding, resumable sampling."""
