"""Contents of files against their schemas, and what is said of those that do not fit."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from msgspec import Meta

from dovetail.errors import DovetailError
from dovetail.files.schema import converted, in_words, misfits, parsed, read_json, read_lines


class Box(TypedDict):
    side: Annotated[int, Meta(ge=1, le=9)]
    kind: NotRequired[Literal["open", "shut"]]
    sizes: NotRequired[list[float]]
    names: NotRequired[Annotated[list[str], Meta(min_length=1)]]


@dataclass(frozen=True)
class Plain:
    name: str
    numbers: tuple[float, ...] = ()


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        ({"side": 3, "kind": "open", "sizes": [1, 2.5, math.nan], "names": ["a"], "other": object}, []),
        ({}, ["has no side"]),
        ([1], ["contains [1] instead of names with values"]),
        ({"side": "3"}, ["has side '3', which is not a whole number"]),
        ({"side": 3.0}, ["has side 3.0, which is not a whole number"]),
        ({"side": True}, ["has side True, which is not a whole number"]),
        ({"side": 0}, ["has side 0, which is not a whole number of at least 1"]),
        ({"side": 10}, ["has side 10, which is not a whole number of at most 9"]),
        ({"side": None, "kind": "ajar"},
            ["has side None, which is not a whole number", "has kind 'ajar', which is not one of open, shut"]),
        ({"side": 1, "sizes": [1, "x"]}, ["has sizes [1, 'x'], which is not a number at [1]"]),
        ({"side": 1, "names": []}, ["has names [], which is not a list of at least 1 in length"]),
        ({"side": 1, "sizes": "x" * 999}, [f"has sizes '{'x' * 99}…, which is not a list"]),
    ],
)  # fmt: skip
def test_each_field_that_does_not_fit_is_told(content: Any, faults: list[str]) -> None:
    assert list(misfits(content, Box)) == faults


def test_a_content_that_fits_is_converted() -> None:
    assert converted({"name": "a", "numbers": [1, 2]}, Plain, "here", "go") == Plain("a", (1.0, 2.0))
    assert converted({"name": "a", "else": 3}, Plain, "here", "go") == Plain("a")
    with pytest.raises(DovetailError, match=r"^here has an unknown field 'else'; go\.$"):
        converted({"name": "a", "else": 3}, Plain, "here", "go", closed=True)
    with pytest.raises(DovetailError, match=r"^here has no name; go\.$"):
        converted({}, Plain, "here", "go")


def test_messages_without_words_of_ours_are_quoted() -> None:
    assert in_words("Number out of range - at `$.a`") == "which is invalid at a (Number out of range)"


def test_files_are_bounded_and_plain(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": NaN}')
    assert math.isnan(read_json(path, "go")["a"])
    with pytest.raises(DovetailError, match=r"file\.json has more than 5 bytes; go\."):
        read_json(path, "go", most_bytes=5)
    for text in ("{", "[" * 100_000, "\ud800"):
        path.write_text(text, errors="surrogatepass")
        with pytest.raises(DovetailError, match=r"file\.json cannot be read \(.*\); go\."):
            read_json(path, "go")
    with pytest.raises(OSError, match="No such file"):
        read_json(tmp_path / "nowhere", "go")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.json")
        with pytest.raises(DovetailError, match="is not a file"):
            read_json(tmp_path / "pipe.json", "go")


def test_lines_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    lines = [json.dumps({"side": 1}), '{"side": 1', "[]", json.dumps({"side": 10**400}), "[" * 9999, '{"side": 2}']
    (tmp_path / "lines").write_text("\n".join(lines))
    assert read_lines(tmp_path / "lines", Box) == [{"side": 1}, {"side": 2}]
    assert read_lines(tmp_path / "nowhere", Box) == []
    assert parsed(b"\xff", Box) is None
