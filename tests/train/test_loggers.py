"""Loggers by name: a sentence for unknown ones and for packages that are absent."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from dovetail.errors import DovetailError
from dovetail.train.loggers import MAKERS, extra_loggers


def test_no_name_gives_no_logger(tmp_path: Path) -> None:
    assert extra_loggers([], tmp_path) == []


def test_an_unknown_logger_is_named(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match="did you mean 'wandb'"):
        extra_loggers(["wandbb"], tmp_path)


@pytest.mark.parametrize("name", [name for name in MAKERS if importlib.util.find_spec(name) is None])
def test_an_absent_package_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match=f"pip install {name}"):
        extra_loggers([name], tmp_path)
