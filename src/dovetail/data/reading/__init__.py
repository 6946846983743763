"""Reading one image: decoding with a deadline, values of more than 8 bits, what is skipped."""
