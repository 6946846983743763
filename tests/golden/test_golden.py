"""Every golden file of the project's own copy matches."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.__main__ import run_file
from tests.golden.vectors import Golden, read_folder


@pytest.mark.parametrize("golden", list(read_folder(Path(__file__).parent / "data")), ids=lambda golden: golden.name)
def test_matches(golden: Golden) -> None:
    line, in_order = run_file(golden)
    assert in_order, line
