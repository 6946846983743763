"""Parses and formats durations."""

from __future__ import annotations

import re

from dovetail.errors import OptionsError

UNITS = {"h": 3600, "min": 60, "s": 1}


def seconds_in(budget: str) -> float:
    """Return the seconds of a duration such as "30min", "2h", "1h30min" or "90s".

    Raises:
        OptionsError: The text is not a duration, or the duration is zero.

    >>> seconds_in("1h30min")
    5400.0
    """
    found = re.fullmatch(r"(?:([\d.]+)\s*h)?\s*(?:([\d.]+)\s*min)?\s*(?:([\d.]+)\s*s)?", budget.strip())
    try:
        parts = [float(one or 0) for one in found.groups()] if found else []
    except ValueError:
        parts = []
    seconds = sum(part * unit for part, unit in zip(parts, UNITS.values(), strict=False))
    if not 0 < seconds < 1e9:
        raise OptionsError(f"budget expects a duration such as 30min, 2h or 90s, got {budget!r}.")
    return seconds


def in_words(seconds: float) -> str:
    """Return a duration as text with about two digits.

    >>> in_words(7821), in_words(754), in_words(41.6), in_words(0.4)
    ('2 h 10 min', '13 min', '42 s', '1 s')
    """
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours:,} h" + (f" {rest} min" if rest and hours < 10 else "")
