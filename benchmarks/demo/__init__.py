"""The demonstration behind `make demo`: what joint pre-training of encoder and decoder does with few labels."""
