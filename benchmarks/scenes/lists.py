"""The lists of names beside this file: sections `[name]`, one entry a line, `#` for remarks."""

from __future__ import annotations

from pathlib import Path


def read_list(name: str) -> dict[str, list[str]]:
    """Return the entries of each section of `NAME.txt`."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in (Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            current.append(line)
    return sections
