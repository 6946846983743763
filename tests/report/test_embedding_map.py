"""The map of embeddings in a run's page: every image with its path, whatever its name."""

from __future__ import annotations

import re
import shutil
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from dovetail.cli import run as run_command
from dovetail.data.open import open_source
from dovetail.errors import DovetailError
from dovetail.report.embedding import embed
from dovetail.report.embedding_map import Flat, draw_map, far_apart, flattened, put_between
from dovetail.report.page import PAGE
from tests.report.conftest import HOSTILE
from tests.report.test_page import outline


@pytest.fixture
def run(slot_run: Path, tmp_path: Path) -> Path:
    """A copy of a run, whose page may change."""
    return Path(
        shutil.copytree(slot_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    )


def test_every_photograph_is_on_the_map_with_its_path(run: Path, photos: Path, tmp_path: Path) -> None:
    given = ["--run", str(run), "--data", str(photos), "--out", str(tmp_path / "e.npy"), "--page-map", "pca"]
    assert run_command(["embed", *given]) == 0
    assert run_command(["embed", *given]) == 0  # in place of the map that is there
    text = (run / PAGE).read_text(encoding="utf-8")
    names = [unescape(name) for name in re.findall(r'data-name="([^"]*)"', text)]
    assert sorted(names) == sorted(str(path) for path in photos.iterdir())
    page = outline(run)
    assert page.open == []
    assert page.ids.count("map") == 1
    assert page.loads.count("#map") == 1
    assert page.tags.count("script") == 2
    assert page.tags.count("b") == 0
    assert all(load.startswith(("#", "data:image/")) for load in page.loads)
    said = "".join(page.text)
    assert "% of the variance" in said
    assert all(name in said for name in HOSTILE)


def test_photographs_of_many_channels_and_those_that_went_are_on_the_map(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(5):
        np.save(tmp_path / f"{number}.npy", rng.integers(0, 256, (20, 30, 5), dtype=np.uint8))
    source = open_source(tmp_path)
    (tmp_path / "2.npy").unlink()
    places = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [3.0, 3.0]])
    svg = draw_map(Flat(places, ("first (no unit)", "second (no unit)"), ""), source, range(5), in_channels=5)
    assert len(re.findall("data-name=", svg)) == 5
    assert svg.count("data:image/jpeg") == 4


def test_near_embeddings_lie_together_on_either_map() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(3, 16)[np.repeat(np.arange(3), 8)]
    vectors = (centres + 0.05 * rng.standard_normal(centres.shape)).astype(np.float32)
    for projection in ("pca", "tsne"):
        flat = flattened(vectors, projection)  # type: ignore[arg-type]
        assert flat.places.shape == (24, 2)
        groups = flat.places.reshape(3, 8, 2)
        within = np.linalg.norm(groups - groups.mean(axis=1, keepdims=True), axis=2).mean()
        between = np.linalg.norm(groups.mean(axis=1) - groups.mean(axis=(0, 1)), axis=1).mean()
        assert between > 3 * within
        assert np.array_equal(flattened(vectors, projection).places, flat.places)  # type: ignore[arg-type]
        assert all("no unit" in axis for axis in flat.axes)


def test_photographs_on_the_map_do_not_cover_each_other() -> None:
    assert list(far_apart({0: (0, 0), 1: (5, 5), 2: (0, 40), 3: (41, 5)}, 32)) == [0, 2, 3]


def test_a_map_that_cannot_be_is_refused_in_a_sentence(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "e.npy"
    with pytest.raises(DovetailError, match="at least 4 readable images, got 3"):
        embed(run=run, data=sorted(photos.iterdir())[:3], out=out, page_map="pca")
    with pytest.raises(DovetailError, match="written by another version"):
        put_between("<html>", "map", "", Path("report.html"))
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(DovetailError, match=r"dovetail-ssl\[map\].*--page-map pca"):
        embed(run=run, data=photos, out=out, page_map="tsne")
    (run / PAGE).unlink()
    with pytest.raises(DovetailError, match="does not exist; specify a run with a page"):
        embed(run=run, data=photos, out=out, page_map="pca")
