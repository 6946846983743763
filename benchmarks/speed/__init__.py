"""Speed beside peers and beside the bare arithmetic, in one run; `python -m benchmarks.speed.NAME --help`."""
