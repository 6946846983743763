"""Image sources and labelled sets: reading, decoding, resumable sampling."""
