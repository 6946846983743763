"""Reads single images: decoding with a deadline, values of more than 8 bits, the log of skipped images."""
