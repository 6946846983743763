"""The page of `dovetail compare`: scores with their intervals, every run's curves, hostile names as text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import dovetail
from dovetail.cli import run as run_command
from dovetail.downstream.start import file_mark
from dovetail.downstream.table.results import Results, Row, Score, one_value, over_seeds
from dovetail.errors import DovetailError
from dovetail.report.compare_page import plots
from dovetail.report.history import History
from dovetail.report.score_plots import draw_score, varying, words
from tests.report.test_page import Outline

NAMES = ("<i>one", "two & $x$")


def reading(step: int, loss: float) -> dict[str, Any]:
    return {
        "step": step,
        "loss": loss,
        "lr": 0.1,
        "teacher_momentum": None,
        "grad_norm": 1.0,
        "images_per_second": 8.0,
        "data_wait": 0.1,
        "parts": {"cls/loss": loss, "cls/cross_entropy": loss},
        "effective_rank": {"cls": 3.0},
        "spread": {"cls": 0.5},
    }


def rows(bonus: float) -> tuple[Row, ...]:
    return tuple(
        Row({"start": start, "fraction": share}, {"mIoU": over_seeds([0.2 + share / 2, 0.3 + share / 2 + bonus])})
        for start in ("random", "all")
        for share in (0.1, 1.0)
    )


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two folders of runs with readings and results."""
    folders = [tmp_path / name for name in NAMES]
    for number, folder in enumerate(folders):
        Results("finetune segment", rows(0.1 * number), {"seed": 0}, {"fingerprint": "a"}, "cpu").write(
            folder / "finetune-segment"
        )
        lines = [json.dumps(reading(step, 3.0 / step + number)) for step in (1, 2, 3)]
        (folder / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
        (folder / "config.yaml").write_text("method: dino\nmodel: timm/test_vit\ndata: photos\n", encoding="utf-8")
    return folders


def parsed(page: Path) -> Outline:
    outline = Outline()
    outline.feed(page.read_text(encoding="utf-8"))
    outline.close()
    assert outline.open == []
    return outline


def test_the_page_says_what_its_intervals_are_over(tmp_path: Path) -> None:
    scores = {"finetune segment": over_seeds([0.2, 0.3, 0.4]), "evaluate dense": one_value(0.5, (0.4, 0.6))}
    for task, score in scores.items():
        Results(task, (Row({"at": "p2"}, {"mIoU": score}),), {}, {"fingerprint": "a"}, "cpu").write(tmp_path / task)
    out = tmp_path / "comparison.html"
    assert run_command(["compare", *(str(tmp_path / task) for task in scores), "--out", str(out)]) == 0
    told = re.findall(r"Dots are means.*?</p>", out.read_text(encoding="utf-8"))
    seeds, images = ("Student&#39;s t" in one for one in told), ("over test images (bootstrap)" in one for one in told)
    assert (list(seeds), list(images)) == ([True, False], [False, True])


def test_the_page_has_scores_curves_and_runs(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "comparison.html"
    assert run_command(["compare", *map(str, runs), "--out", str(out)]) == 0
    page = parsed(out)
    assert {"task1", "runs", "curves"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert all(load.startswith("#") for load in page.loads)
    assert {load.removeprefix("#") for load in page.loads} <= set(page.ids)
    assert page.tags.count("i") == 0
    said = " ".join("".join(page.text).split())
    for name in (
        *NAMES,
        "mIoU (%)",
        "labelled images (% of all)",
        "Loss of term cls (unweighted)",
        "optimiser steps",
        "dino",
    ):
        assert name in said, name
    text = out.read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text


def test_curves_alone_make_a_page_but_no_table(runs: list[Path], tmp_path: Path) -> None:
    (runs[0] / "finetune-segment" / "results.json").unlink()
    assert dovetail.compare([str(runs[0])], out=tmp_path / "c.html") == {}
    assert "curves" in parsed(tmp_path / "c.html").ids
    with pytest.raises(DovetailError, match=r"Found no results\.json in the 1 folders"):
        dovetail.compare([str(runs[0])])
    with pytest.raises(DovetailError, match=r"expected \.html"):
        dovetail.compare([str(runs[0])], out=tmp_path / "c.pdf")


def test_runs_without_their_curves_make_a_page_of_scores(runs: list[Path], tmp_path: Path) -> None:
    folder = runs[0] / "finetune-segment"
    assert list(dovetail.compare([str(folder)], out=tmp_path / "c.html")) == ["finetune segment"]
    assert "runs" not in parsed(tmp_path / "c.html").ids


@pytest.mark.parametrize("inside", [True, False], ids=["in the run", "elsewhere"])
def test_scores_of_former_weights_are_marked(inside: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    weights = run / "exported" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"before")
    asked = {"run": str(run), "resolved_weights": file_mark(weights)}
    file = (run if inside else tmp_path / "scores") / "finetune-segment"
    Results("finetune segment", rows(0.0)[:1], asked, {"fingerprint": "a"}, "cpu").write(file)
    Results("finetune segment", rows(0.0)[:1], {}, {"fingerprint": "a"}, "cpu").write(other / "finetune-segment")
    folders = [str(file), str(other)]
    (same, _) = dovetail.compare(folders)["finetune segment"]
    assert "weights" not in same.setting
    capsys.readouterr()
    weights.write_bytes(b"longer")
    former, unknown = dovetail.compare(folders)["finetune segment"]
    assert former.setting["weights"] == "former"
    assert "weights" not in unknown.setting  # which run it is of is not known
    told = f"{file / 'results.json'} has the scores of former weights: {run} has been trained further or anew since"
    assert told in capsys.readouterr().out.replace("\n", " ")


def test_a_run_has_one_colour_in_all_plots() -> None:
    histories = {"a": History((reading(1, 1.0),)), "b": History((reading(1, 2.0) | {"parts": {"p2/loss": 1.0}},))}
    found = {plot.title: [line.name for line in plot.lines] for plot in plots(histories)}
    assert found["Loss of term cls (unweighted)"] == ["a"]
    assert found["Loss of term p2 (unweighted)"] == ["b"]
    assert found["Learning rate"] == ["a", "b"]
    assert found["Teacher momentum"] == []


def test_settings_that_all_rows_share_are_not_said() -> None:
    two = [Row({"run": "x", "start": start, "lr": 0.1}, {}) for start in ("all", "random")]
    assert varying(two) == ["start"]
    assert words(two[0].setting, ["run", "start"]) == "x, start all"
    assert words(two[0].setting, []) == "all"


class Texts(HTMLParser):
    """Gathers an SVG's text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_data(self, data: str) -> None:
        self.found.append(data.strip())


def texts(svg: str) -> list[str]:
    parser = Texts()
    parser.feed(svg)
    return parser.found


@pytest.mark.parametrize(
    ("table", "axis", "label"),
    [
        (rows(0.0), "labelled images (% of all)", "start random"),
        (rows(0.0)[::2], "mIoU (%)", "start all"),
        ([Row({"k": k}, {"mIoU": Score(0.5, (0.5,))}) for k in (10, 20)], "neighbours (number)", "10"),
    ],
)
def test_scores_are_drawn_over_shares_or_row_by_row(table: Sequence[Row], axis: str, label: str) -> None:
    svg = draw_score("mIoU", table, name="s")
    ElementTree.fromstring(svg)
    found = texts(svg)
    assert axis in found
    assert label in found
