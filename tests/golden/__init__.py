"""Parity with numbers that the official implementations produced.

`python -m tests.golden DIR` reads every `NAME_x.json` (and its `.safetensors`) below DIR and runs `check_NAME.check`.
"""
