"""Pictures of what a run has learned, through the command line and by their numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dovetail.cli import run as run_command
from dovetail.data.open import open_source
from dovetail.errors import DovetailError
from dovetail.report import visualize
from dovetail.report.embedding import embed
from dovetail.report.pictures_attention import attention_of, vit_of, with_queries
from dovetail.report.pictures_correspondence import (
    cell_places,
    in_image,
    match,
    median_error,
    spread_out,
    view_pair,
)
from dovetail.report.pictures_neighbours import nearest, neighbours_sheet
from dovetail.report.pictures_slots import label_places
from dovetail.report.pixels import as_view
from dovetail.report.sheets import short
from dovetail.run.restored import restore
from dovetail.views.view import View


@pytest.mark.parametrize(
    ("what", "which", "files"),
    [
        ("pca", "slot_run", ["pca.png"]),
        ("slots", "slot_run", ["slots-decoder_p2.png", "slots-encoder.png"]),
        ("correspondence", "slot_run", ["correspondence-01.png", "correspondence-02.png"]),
        ("neighbours", "slot_run", ["neighbours.png"]),
        ("attention", "query_run", ["attention.png", "queries.png"]),
        ("pca", "query_run", ["pca.png"]),
    ],
)
def test_every_kind_of_picture_is_drawn(
    what: str, which: str, files: list[str], photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run: Path = request.getfixturevalue(which)
    given = ["--run", str(run), "--images", str(photos), "--out", str(tmp_path), "--most", "2"]
    assert run_command(["visualize", what, *given]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    for name in files:
        pixels = np.asarray(Image.open(tmp_path / name).convert("L"))
        assert pixels.shape[1] > 300
        assert pixels.std() > 20  # something is drawn


def test_photographs_are_matched_two_by_two(slot_run: Path, photos: Path, tmp_path: Path) -> None:
    found = visualize.correspondence(run=slot_run, images=photos, out=tmp_path, between="images", most=1, lines=4)
    assert [path.name for path in found] == ["correspondence-01.png"]


def test_pairs_of_views_are_spread_over_the_folder(slot_run: Path, photos: Path) -> None:
    source = open_source(photos)
    sheets = view_pair(restore(slot_run), source, most=3, lines=4)
    expected = [short(source.name(index)) for index in (0, 3, 6)]
    assert [sheet.title.get_text().split("of ", 1)[1].rsplit(",", 1)[0] for sheet in sheets] == expected


def test_neighbours_have_their_names_and_cosines(slot_run: Path, photos: Path) -> None:
    sheet = neighbours_sheet(slot_run, photos, most=1, count=2, side_px=None, batch_size=4)
    first, *others = (axes.get_title() for axes in sheet.axes[0])
    names = {short(path.name) for path in photos.iterdir()}
    assert first in names
    for words in others:
        name, cosine = words.split("\n")
        assert name in names - {first}
        assert -1 <= float(cosine) <= 1


@pytest.mark.parametrize(
    ("what", "which", "sentence"),
    [
        ("slots", "query_run", "has no slots; use a run of slotcon or decon-sl"),
        ("attention", "slot_run", "is not a ViT with plain attention"),
    ],
)
def test_pictures_that_a_run_cannot_give_are_refused(
    what: str, which: str, sentence: str, photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    draw = {"slots": visualize.slots, "attention": visualize.attention}[what]
    with pytest.raises(DovetailError, match=sentence):
        draw(run=request.getfixturevalue(which), images=photos, out=tmp_path)


def test_a_folder_of_images_is_refused_for_pictures(slot_run: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "pca.png").write_bytes(b"an earlier picture")
    (tmp_path / "notes.txt").touch()
    for _ in range(2):
        visualize.neighbours(run=slot_run, images=photos, out=tmp_path, most=2, count=1)
    (tmp_path / "wheat.jpg").touch()
    told = r"contains files that `visualize` did not write, such as 'wheat\.jpg'; choose another folder with --out"
    for draw in (visualize.pca, visualize.slots, visualize.attention, visualize.correspondence, visualize.neighbours):
        with pytest.raises(DovetailError, match=told):
            draw(run=slot_run, images=photos, out=tmp_path)


def test_a_folder_without_a_run_and_a_wrong_size_are_refused(slot_run: Path, photos: Path, tmp_path: Path) -> None:
    for draw in (visualize.pca, visualize.slots, visualize.attention, visualize.correspondence, visualize.neighbours):
        with pytest.raises(DovetailError, match="is the name of a picture; specify the folder"):
            draw(run=slot_run, images=photos, out=tmp_path / "pca.png")
    with pytest.raises(DovetailError, match="contains no run"):
        visualize.pca(run=tmp_path, images=photos, out=tmp_path)
    with pytest.raises(DovetailError, match="expects a multiple of 32"):
        visualize.pca(run=slot_run, images=photos, out=tmp_path, side_px=65)
    for draw in (visualize.pca, visualize.correspondence, visualize.neighbours):
        with pytest.raises(DovetailError, match="--images is missing"):
            draw(run=slot_run, out=tmp_path)
    with pytest.raises(DovetailError, match="most is 0"):
        visualize.correspondence(run=slot_run, images=photos, out=tmp_path, most=0)


def test_a_run_is_restored_as_it_began_and_as_it_is(slot_run: Path) -> None:
    first, again = restore(slot_run), restore(slot_run)
    before, after = first.before.model.state_dict(), first.after.model.state_dict()
    assert first.step == 2
    assert all(torch.equal(value, again.before.model.state_dict()[name]) for name, value in before.items())
    from safetensors.torch import load_file

    exported = load_file(slot_run / "exported" / "model.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in exported.items())
    assert any(not torch.equal(value, before[name]) for name, value in exported.items())


@pytest.mark.parametrize(("step", "words"), [(1, "1 step"), (2, "2 steps"), (1480, "1,480 steps")])
def test_steps_are_told_in_words(slot_run: Path, step: int, words: str) -> None:
    assert replace(restore(slot_run), step=step).steps == words


def test_attention_sums_to_one_with_the_class_token_and_the_query_itself(query_run: Path) -> None:
    run = restore(query_run)
    network = vit_of(run)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    view = with_queries(as_view(list(pixels), run.recipe.views, network), network.taps["patches"].stride)
    found = attention_of(network, view)
    assert found.cls is not None
    assert found.queries is not None
    assert found.cls.shape[2:] == found.queries.shape[2:] == (4, 4)
    for weights in (found.cls, found.queries):
        total = weights.sum(dim=(2, 3))
        assert bool(((total > 0.5) & (total < 1)).all())  # the rest goes to the class token and the query itself


def view_of(box: tuple[float, float, float, float], *, flipped: bool) -> View:
    return View(torch.zeros(1, 3, 8, 8), torch.tensor([box]), torch.tensor([flipped]), torch.tensor([[200.0, 100.0]]))


def test_maps_that_know_their_place_match_without_error() -> None:
    views = (view_of((0.0, 0.0, 1.0, 1.0), flipped=False), view_of((0.0, 0.0, 1.0, 1.0), flipped=True))
    maps = []
    for view in views:
        places = in_image(cell_places(8, 8), view) / torch.tensor([200.0, 100.0]) * 3
        waves = [torch.stack([(k * places).sin(), (k * places).cos()]) for k in (1, 2)]
        maps.append(torch.cat(waves).permute(0, 2, 1).reshape(8, 8, 8))
    assert median_error(maps[0], maps[1], views) == pytest.approx(0, abs=1e-3)
    wrong = median_error(maps[0], maps[1].flip(2), views)
    assert wrong is not None
    assert wrong > 20
    apart = (view_of((0.0, 0.0, 0.4, 1.0), flipped=False), view_of((0.6, 0.0, 1.0, 1.0), flipped=False))
    assert median_error(maps[0], maps[1], apart) is None


def test_matches_are_mutual_and_spread_out() -> None:
    torch.manual_seed(0)
    first = torch.randn(16, 6, 6)
    second = first.flip(1)
    matches = match(first, second)
    rows = torch.arange(36) // 6
    assert torch.equal(matches.second, (5 - rows[matches.first]) * 6 + matches.first % 6)
    assert torch.allclose(matches.cosine, torch.ones(36), atol=1e-5)
    assert len(spread_out(matches, 6, 4).first) == 4
    with_constant = match(torch.ones(4, 3, 3), torch.ones(4, 3, 3))
    assert len(with_constant.first) == 1


def test_neighbours_leave_out_the_photograph_itself() -> None:
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 2]], dtype=np.float32)
    order, cosine = nearest(vectors, np.array([0, 2]), 2)
    assert order[:, 0].tolist() == [1, 3]
    assert cosine[0, 0] == pytest.approx(0.9939, abs=1e-3)
    assert nearest(vectors, np.array([0]), 9)[0].shape == (1, 3)


def test_slot_numbers_stand_on_their_own_cells() -> None:
    winner = np.zeros((24, 24), dtype=np.int64)
    winner[:, 12:] = 5
    winner[0, 0] = 7
    places = label_places(winner, [0, 5, 7])
    assert set(places) == {0, 5}
    assert places[0][0] < 12 < places[5][0]


def test_embeddings_come_with_their_paths(slot_run: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted(photos.iterdir())[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    out = tmp_path / "vectors.npy"
    assert run_command(["embed", "--run", str(slot_run), "--data", str(folder), "--out", str(out)]) == 0
    vectors, names = np.load(out), json.loads((tmp_path / "vectors.paths.json").read_text(encoding="utf-8"))
    assert vectors.dtype == np.float32
    assert vectors.shape[0] == len(names) == 3
    assert names == sorted(str(path) for path in folder.iterdir() if path.name != "broken.jpg")
    one = embed(run=slot_run, data=[names[1]], out=tmp_path / "one.npy", batch_size=1)
    assert np.allclose(np.load(one)[0], vectors[1], atol=1e-4)


def test_endings_and_missing_packages_get_a_sentence(
    slot_run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DovetailError, match=r"expected \.npy or \.parquet"):
        embed(run=slot_run, data=photos, out=tmp_path / "x.csv")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DovetailError, match=r"dovetail-ssl\[parquet\]"):
        embed(run=slot_run, data=photos, out=tmp_path / "x.parquet")
