"""Heads: mirrored modules between a tap and an objective. One file for each kind of output."""
