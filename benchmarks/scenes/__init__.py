"""Data sets that the evidence is measured on; `python -m benchmarks.scenes --help` builds them and draws sheets."""
