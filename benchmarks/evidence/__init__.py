"""The study behind docs/results.md; `python -m benchmarks.evidence --help`."""
