"""Paths that do not exist, and what was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovetail.data.open import open_source
from dovetail.downstream.labels.labelled import existing
from dovetail.errors import DataError, RunError
from dovetail.files.missing import about_missing, is_missing
from dovetail.run.restored import restore


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("photos", "runs/wheat/exported", "labelled", "Old", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("fotos", "photos"),
        ("photo/", "photos"),
        ("Photos", "photos"),
        ("old", "Old"),
        ("runs/weat", "runs/wheat"),
        ("run/wheat/exported", "runs/wheat/exported"),
    ],
)
def test_a_close_name_is_suggested(given: str, meant: str, folders: Path) -> None:
    assert about_missing(given) == f"did you mean {meant!r}?"
    assert about_missing(folders / given) == f"did you mean {str(folders / meant)!r}?"


def test_without_a_close_name_the_folder_is_listed(folders: Path) -> None:
    assert about_missing("xyz") == f"{folders} contains Old, labelled, photos, runs."
    assert about_missing("xyz/photos") == f"{folders} contains Old, labelled, photos, runs."
    assert about_missing("labelled/masks") == f"{folders / 'labelled'} is empty."
    for index in range(4):
        (folders / f"zz{index}").mkdir()
    assert about_missing("abc").endswith("contains Old, labelled, photos, runs, zz0 and 3 others.")


@pytest.mark.parametrize("given", ["", ".", "hf:name", "s3://a/b", "shards/a-{0..9}.tar", None, 3])
def test_what_is_no_missing_path(given: object, folders: Path) -> None:
    assert not is_missing(given)


def test_python_callers_are_told_the_same(folders: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'photos'"):
        open_source("fotos")
    with pytest.raises(DataError, match="did you mean 'labelled'"):
        existing("labeled")
    with pytest.raises(RunError, match="did you mean 'runs/wheat'"):
        restore("runs/weat")


def test_random_weights_are_what_no_option_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert about_missing("random", ("imagenet",)) == "leave the option out to start from random weights."
    assert about_missing("random") == f"{tmp_path} is empty."
