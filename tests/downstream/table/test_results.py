"""results.json holds what was measured and how; intervals are Student's over seeds, and bootstrapped over images."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dovetail.downstream.dense.bootstrap import miou_score
from dovetail.downstream.table.results import (
    Results,
    Row,
    Score,
    bootstrap,
    by_start,
    fingerprint,
    legend,
    one_value,
    over_images,
    over_seeds,
    print_table,
    read_results,
    with_own_interval,
)
from dovetail.errors import DovetailError


def results(mean: float = 0.5) -> Results:
    scores = {"top1": over_images(np.array([True] * round(100 * mean) + [False] * (100 - round(100 * mean))))}
    rows = (Row({"start": "all"}, scores), Row({"start": "random"}, {"top1": over_seeds([0.1, 0.3])}))
    return Results("finetune classify", rows, {"seed": 3, "lr": 0.1}, {"fingerprint": "f"}, "cpu", ("A note.",))


def test_results_hold_numbers_config_versions_seed_and_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results().write(tmp_path)
    content = json.loads(path.read_text())
    assert content["task"] == "finetune classify"
    assert content["seed"] == 3
    assert content["config"] == {"seed": 3, "lr": 0.1}
    assert content["data"] == {"fingerprint": "f"}
    assert {"python", "torch", "timm", "dovetail-ssl"} <= set(content["versions"])
    assert set(content["rows"][0]["scores"]["top1"]) == {"mean", "deviation", "low", "high", "over", "values"}
    assert read_results(tmp_path) == results()
    shown = capsys.readouterr().out
    assert "50.00 [4" in shown
    assert "20.00 (SD 14.14)" in shown
    assert "[10.00, 30.00]" not in shown
    assert "SD is the standard deviation over seeds; [ , ] is the 95 % interval of the mean over" in shown
    assert "two seeds give no interval." in shown
    assert "A note." in shown


def test_intervals_of_shares_are_those_of_the_normal_approximation() -> None:
    right = np.arange(400) < 300
    score = over_images(right)
    spread = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert score.mean == 0.75
    assert (score.low, score.high) == (pytest.approx(0.75 - spread, abs=0.01), pytest.approx(0.75 + spread, abs=0.01))
    assert over_images(right, seed=1) != score


def test_intervals_of_numbers_cover_their_mean() -> None:
    values = np.random.default_rng(0).normal(3, 1, 50)
    low, high = bootstrap(values)
    spread = 1.96 * values.std() / np.sqrt(50)
    assert (low, high) == (
        pytest.approx(values.mean() - spread, abs=0.06),
        pytest.approx(values.mean() + spread, abs=0.06),
    )
    assert bootstrap(np.array([0.4, 0.4, 0.4])) == (pytest.approx(0.4), pytest.approx(0.4))


def test_one_seed_has_no_spread() -> None:
    score = over_seeds([0.25])
    assert (score.deviation, score.low, str(score)) == (None, None, "25.00")


def test_fingerprints_tell_names_and_sizes(tmp_path: Path) -> None:
    for name, content in (("a", "1"), ("b", "22")):
        (tmp_path / name).write_text(content)
    files = [tmp_path / "a", tmp_path / "b"]
    first = fingerprint(files)
    assert first == fingerprint(reversed(files))
    (tmp_path / "b").write_text("333")
    assert fingerprint(files) != first
    assert fingerprint(files[:1]) != first


@pytest.mark.parametrize("name", ["mask.bmp", "mask.TIFF", "instances.json"])
def test_fingerprints_tell_labels_of_one_size(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(bytes(20_000))
    first, times = fingerprint([path]), path.stat()
    path.write_bytes(bytes(9_000) + b"1" + bytes(10_999))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint([path]) != first


def test_fingerprints_tell_png_masks_of_one_size(tmp_path: Path) -> None:
    """The file ends with a checksum of its pixels, so that its ends tell of a change in its middle."""
    mask, prints, sizes = np.zeros((200, 200), dtype=np.uint8), set(), set()
    for label in (0, 1, 2):
        mask[100, 100] = label
        Image.fromarray(mask).save(tmp_path / "mask.png", compress_level=0)
        prints.add(fingerprint([tmp_path / "mask.png"]))
        sizes.add((tmp_path / "mask.png").stat().st_size)
    assert (len(prints), len(sizes)) == (3, 1)


def test_fingerprints_tell_large_files_by_their_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    prints = set()
    for content in (bytes(20_000), b"1" + bytes(19_999), bytes(19_999) + b"1", bytes(100), bytes(99) + b"1"):
        path.write_bytes(content)
        prints.add(fingerprint([path]))
    assert len(prints) == 5


def test_fingerprints_of_tables_tell_what_is_beside_them(tmp_path: Path) -> None:
    table, state = tmp_path / "data-00000-of-00001.arrow", tmp_path / "state.json"
    table.write_bytes(bytes(100))
    prints = {fingerprint([table])}
    for text in ('{"_fingerprint": "a"}', '{"_fingerprint": "b"}'):
        state.write_text(text)
        prints.add(fingerprint([table]))
    assert len(prints) == 3


def test_copies_have_one_fingerprint(tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place / "masks").mkdir(parents=True)
        for name in ("0.png", "0.jpg"):
            (tmp_path / place / "masks" / name).write_bytes(b"same")
            os.utime(tmp_path / place / "masks" / name, ns=(0, len(place)))
    here, there = (sorted((tmp_path / place / "masks").iterdir()) for place in ("here", "there"))
    assert fingerprint(here) == fingerprint(there) == fingerprint([*here, *here])


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match=r"gone\.png cannot be read \(No such file"):
        fingerprint([tmp_path / "gone.png"])


def test_files_of_something_else_are_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DovetailError, match="contains no results of Dovetail"):
        read_results(tmp_path)
    with pytest.raises(DovetailError, match="cannot be read"):
        read_results(tmp_path / "nowhere")


def test_words_are_not_broken_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    score, run = over_seeds([0.123, 0.456]), "a-run-with-quite-a-long-name/finetune-segment"
    print_table("finetune segment", [Row({"run": run, "start": "encoder", "images": 3}, {"mIoU": score})])
    shown = capsys.readouterr().out
    assert run in shown
    assert str(score) in shown


def test_tables_that_are_too_wide_have_a_line_for_each_score(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    score = over_seeds([0.123, 0.456])
    names = ["box AP", "box AP50", "box AP75", "mask AP"]
    monkeypatch.setenv("COLUMNS", "80")
    print_table("finetune detect", [Row({"start": "all", "images": 3}, dict.fromkeys(names, score))])
    narrow = capsys.readouterr().out
    assert narrow.count(str(score)) == 4
    monkeypatch.setenv("COLUMNS", "200")
    print_table("finetune detect", [Row({"start": "all", "images": 3}, dict.fromkeys(names, score))])
    wide = capsys.readouterr().out
    assert wide.count(str(score)) == 4
    assert wide.count("\n") < narrow.count("\n")


def test_two_values_have_no_interval_and_three_have() -> None:
    two, three = over_seeds([0.1, 0.3]), over_seeds([0.4, 0.5, 0.6])
    assert (two.low, two.high, two.deviation) == (None, None, pytest.approx(0.1414, abs=1e-4))
    half = 4.30265 * 0.1 / np.sqrt(3)  # t(0.975, 2)
    assert (three.low, three.high) == (pytest.approx(0.5 - half, abs=1e-5), pytest.approx(0.5 + half, abs=1e-5))
    ends = over_seeds([0.0, 0.5, 1.0])
    assert (ends.low, ends.high) == (0.0, 1.0)
    assert over_images(np.array([0.0, 1.0])).low is None
    assert over_images(np.array([0.0, 1.0, 1.0])).low is not None


def test_the_legend_says_what_each_interval_is_over() -> None:
    deviation = "SD is the standard deviation over seeds; "
    images = over_images(np.array([0.0, 1.0, 1.0]))
    assert legend([images]) == "[ , ] is the 95 % interval of the mean over test images (bootstrap)."
    assert legend([over_seeds([0.1, 0.3])]) == f"{deviation}two seeds give no interval."
    three = over_seeds([0.1, 0.2, 0.3])
    assert legend([three]) == f"{deviation}[ , ] is the 95 % interval of the mean over seeds (Student's t)."
    assert legend([images, three]) == (
        f"{deviation}[ , ] is the 95 % interval of the mean over seeds (Student's t) or over test images (bootstrap)."
    )
    assert legend([Score(0.5, (0.5,))]) == ""


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_the_legend_of_dense_scores_is_true_for_any_number_of_seeds(seeds: int) -> None:
    counts = torch.tensor([[[3, 1], [4, 4], [5, 3]], [[2, 2], [4, 4], [4, 4]], [[4, 3], [4, 4], [5, 3]]])
    score = miou_score([counts] * seeds)
    deviation = "SD is the standard deviation over seeds; " if seeds > 1 else ""
    assert "[" in str(score)
    assert legend([score]) == f"{deviation}[ , ] is the 95 % interval of the mean over test images (bootstrap)."


def test_intervals_of_older_files_are_those_of_now() -> None:
    """Older files do not say what an interval is over; over seeds it was a bootstrap."""
    for several in (over_seeds([0.1, 0.3]), over_seeds([0.1, 0.2, 0.3])):
        old = replace(several, low=0.1, high=0.3, over=None)
        assert with_own_interval(old, "finetune segment") == several
        assert with_own_interval(old, "evaluate dense") == replace(old, over="images")
    one = over_images(np.array([0.0, 1.0, 1.0]))
    assert with_own_interval(replace(one, over=None), "finetune segment") == one
    assert with_own_interval(one, "finetune segment") == one


def test_a_table_of_starts_has_one_row_for_each() -> None:
    table = [
        Row({"start": start, "fraction": share, "images": images}, {"mIoU": one_value(value), "aAcc": one_value(0.5)})
        for start, share, images, value in (("random", 0.1, 5, 0.1), ("random", 1.0, 50, 0.2), ("all", 0.1, 5, 0.3))
    ]
    assert by_start(table) == [
        Row({"start": "random"}, {"mIoU, 5 images": one_value(0.1), "mIoU, 50 images": one_value(0.2)}),
        Row({"start": "all"}, {"mIoU, 5 images": one_value(0.3)}),
    ]
    assert by_start(table[:2]) == table[:2]  # of one start all scores are shown
    others = [Row({"at": "encoder"}, {"mIoU": one_value(0.1)})]
    assert by_start(others) == others
