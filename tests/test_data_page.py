"""Every row of the tables on the page of images names tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from dovetail.data.folders import VOLUMES, is_volume, named_as_image
from dovetail.data.reading.recognise import FORMATS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
TABLES = [table.splitlines() for table in re.findall(r"(?m)(?:^\|.*\n)+", PAGE)]
ROWS = [row for table in TABLES if table[0].endswith("| Tested by |") for row in table[2:]]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def test_every_row_names_its_tests() -> None:
    assert len(ROWS) > 15
    assert len(NAMED) > 15
    assert [row for row in ROWS if "`tests/" not in row] == []


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_the_page_names_is_there(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_format_has_a_row() -> None:
    """A format that is read and missing in the table fails here."""
    first = " ".join(row.split("|")[1] for row in ROWS).replace(" ", "")
    assert [name for name in (*FORMATS, "DICOM", "NIfTI", ".npy", *VOLUMES) if name.lower() not in first.lower()] == []
    assert is_volume("a.nii.gz")
    assert named_as_image("a.dcm")
