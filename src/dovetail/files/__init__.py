"""Files: atomic writing, locks, and reading with limits."""
