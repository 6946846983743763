"""Durations in words, there and back."""

from __future__ import annotations

import pytest

from dovetail.durations import in_words, seconds_in
from dovetail.errors import DovetailError


@pytest.mark.parametrize(
    ("text", "seconds"), [("30min", 1800), ("2h", 7200), ("90s", 90), ("1h30min", 5400), ("0.5 h", 1800)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert seconds_in(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "2 days", "0s", "-1h", "1.2.3h", "h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(DovetailError, match="budget expects a duration"):
        seconds_in(text)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (89, "89 s"),
        (90, "2 min"),
        (5900, "98 min"),
        (7800, "2 h 10 min"),
        (7200, "2 h"),
        (216000, "60 h"),
    ],
)
def test_durations_are_written(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
