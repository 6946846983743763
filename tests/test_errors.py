"""Sentences are whole, and count right."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovetail.data.open import open_source
from dovetail.data.order import steps_per_epoch
from dovetail.errors import DovetailError, counted


def test_a_sentence_that_quotes_another_has_one_full_stop(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"x" * 257 + b"ustar" + b"x" * 300)
    with pytest.raises(DovetailError, match=r"cannot be counted: .*fetch or make it again\.$") as caught:
        open_source(tmp_path)
    assert ".." not in str(caught.value).replace(str(tmp_path), "")
    assert str(DovetailError("It is broken (no such thing.); mend it.")) == "It is broken (no such thing); mend it."
    assert str(DovetailError("Its name leads to '..'.")) == "Its name leads to '..'."
    assert str(DovetailError("There are: a, b, ...")) == "There are: a, b, ..."


def test_one_thing_is_no_plural() -> None:
    assert [counted(number, "image") for number in (0, 1, 2, 1234)] == [
        "0 images",
        "1 image",
        "2 images",
        "1,234 images",
    ]
    with pytest.raises(DovetailError, match="1 image is too few for a batch of 2"):
        steps_per_epoch(1, 2)
