"""The study counts only what was measured with its settings, continues where it stopped, and shows what is missing."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from benchmarks.evidence import __main__ as command
from benchmarks.evidence import measure
from benchmarks.evidence.measure import Bench, run_row
from benchmarks.evidence.records import Cell, Records
from benchmarks.evidence.rows import (
    IMAGENET,
    JOINT,
    QUESTIONS,
    RANDOM,
    Pair,
    Pretraining,
    Question,
    Row,
    question_named,
)
from benchmarks.evidence.scales import SCALES
from benchmarks.evidence.statistics import Estimate, estimate, paired
from benchmarks.evidence.tables import BLOCK, Section, update_page
from benchmarks.scenes.sets import SetPlan, build
from benchmarks.scenes.write import SceneSet

from dovetail.downstream.options import FinetuneSegmentOptions
from dovetail.errors import DovetailError
from dovetail.recipes.table import options_of

TINY = SCALES["tiny"]
FACTS: dict[str, Any] = {"machine": "here", "device": "cpu"}


def test_an_interval_by_hand() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.count) == (3.0, 5)
    assert found.half == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5))  # t(4) s / sqrt(n)
    assert estimate([1.0, 3.0]).half == pytest.approx(12.706)
    assert estimate([7.0]) == Estimate(7.0, None, 1)
    many = estimate([float(number % 2) for number in range(100)])
    assert many.half == pytest.approx(2.042 * math.sqrt(25 / 99) / 10)


def test_pairs_are_compared_on_the_seeds_that_both_have() -> None:
    found = paired({0: 11.0, 1: 22.0, 2: 99.0}, {0: 10.0, 1: 20.0, 3: -99.0})
    assert found is not None
    assert (found.mean, found.count) == (1.5, 2)
    assert paired({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ("values", "above", "below"),
    [
        ([1.0, 1.1, 0.9], True, False),
        ([-1.0, -1.1, -0.9], False, True),
        ([1.0, -1.0], False, False),
        ([9.0], False, False),
    ],
)
def test_a_difference_counts_only_by_its_whole_interval(values: list[float], above: bool, below: bool) -> None:
    found = estimate(values)
    assert (found.above_zero, found.below_zero) == (above, below)


@pytest.mark.parametrize("row", [row for question in QUESTIONS for row in question.rows], ids=lambda row: row.name)
def test_every_row_names_a_known_method_and_its_options(row: Row) -> None:
    if row.pretraining is not None:
        assert set(row.pretraining.recipe) <= set(options_of(row.pretraining.method))
    else:
        assert row.starts == (("encoder",) if row.init else ("random",))


def test_every_scale_has_the_networks_of_its_questions() -> None:
    for scale in SCALES.values():
        rows = [row for name in scale.questions for row in question_named(name).rows]
        assert rows
        assert {row.network for row in rows} <= set(scale.networks)


def test_an_encoder_is_frozen_by_an_option_that_fine_tuning_has() -> None:
    known = set(FinetuneSegmentOptions.__dataclass_fields__)
    for scale in SCALES.values():
        assert {"encoder_lr_scale", *scale.finetuning, *RANDOM.finetuning} <= known
        assert scale.steps("decoder") == scale.decoder_fractions


def test_every_pair_names_rows_and_starts_of_its_question() -> None:
    for question in QUESTIONS:
        known = {(row.name, start) for row in question.rows for start in row.starts}
        for pair in question.pairs:
            assert {(pair.row, pair.start), (pair.other, pair.other_start)} <= known
        assert question_named(question.name) is question
    with pytest.raises(DovetailError, match=r"no question 'segmentt'.*'segment'"):
        question_named("segmentt")


def test_a_line_counts_for_its_settings_alone(tmp_path: Path) -> None:
    records = Records(tmp_path / "a.jsonl", TINY, "images")
    cell = Cell(IMAGENET.name, "segment", "encoder", 0.5, 0)
    records.add(IMAGENET, cell, {"mIoU": 0.25}, FACTS)
    assert list(records.found(IMAGENET, "segment")) == [cell]
    others = [
        dataclasses.replace(records, images="others"),
        dataclasses.replace(records, scale=dataclasses.replace(TINY, finetuning={"steps": 3})),
        dataclasses.replace(records, scale=dataclasses.replace(TINY, view_px=32)),
    ]
    assert [list(one.found(IMAGENET, "segment")) for one in others] == [[], [], []]
    assert records.found(RANDOM, "segment") == {}
    longer = dataclasses.replace(TINY, seeds=(0, 1, 2), detection={})
    assert list(dataclasses.replace(records, scale=longer).found(IMAGENET, "segment")) == [cell]
    with records.path.open("a") as file:
        lacking = {"mark": records.mark(IMAGENET, "segment"), "measure": "segment", "scores": {"mIoU": 0.75}}
        file.write(json.dumps(lacking) + '\n{"mark": "cut o')
    records.add(IMAGENET, dataclasses.replace(cell, seed=1), {"mIoU": 0.5}, FACTS)
    assert len(records.found(IMAGENET, "segment")) == 2


def filled(tmp_path: Path) -> Section:
    """Return a section in which one row is above another by 1, 2 and 3 points."""
    first, second = (Row(name, Pretraining("simsiam"), starts=("encoder",)) for name in ("first", "second"))
    pair = Pair("first", "encoder", "second", "encoder")
    question = Question("segment", "Which?", "segment", (first, second, RANDOM), (pair,))
    scale = dataclasses.replace(TINY, seeds=(0, 1, 2), fractions={0.5: 2})
    records = Records(tmp_path / "lines.jsonl", scale, "images")
    for seed in scale.seeds:
        for row, score in ((first, 0.31 + 0.01 * seed), (second, 0.30)):
            records.add(row, Cell(row.name, "segment", "encoder", 0.5, seed), {"mIoU": score}, FACTS)
    return Section(question, records)


def test_tables_show_means_intervals_pairs_and_what_is_missing(tmp_path: Path) -> None:
    text = filled(tmp_path).text()
    assert "| first | encoder | 32.0 ± 2.5 |" in text
    assert "| second | encoder | 30.0 ± 0.0 |" in text
    assert "| first, encoder | second, encoder | +2.0 ± 2.5 |" in text
    assert "Not run: random weights (nothing).\n" in text
    assert "python -m benchmarks.evidence --scale tiny --questions segment" in text


def test_two_seeds_have_no_interval(tmp_path: Path) -> None:
    section = filled(tmp_path)
    lines = [json.loads(line) for line in section.records.path.read_text().splitlines()]
    section.records.path.write_text("".join(json.dumps(line) + "\n" for line in lines if line["seed"] < 2))
    text = section.text()
    assert "| first | encoder | 31.5 (n = 2) |" in text
    assert "| first, encoder | second, encoder | +1.5 (n = 2) |" in text


def test_the_page_keeps_its_text_and_gets_new_tables(tmp_path: Path) -> None:
    section, page = filled(tmp_path), tmp_path / "page.md"
    page.write_text("before\n<!-- study segment tiny -->\nold\n<!-- end -->\nafter\n")
    assert update_page(page, lambda question, scale: section)
    text = page.read_text()
    assert text.startswith("before\n<!-- study segment tiny -->\nmIoU in %")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "\nold\n" not in text
    assert not update_page(page, lambda question, scale: section)


def test_every_table_of_the_page_is_one_that_is_updated() -> None:
    text = command.PAGE.read_text(encoding="utf-8")
    found = BLOCK.findall(text)
    assert 0 < text.count("<!-- study ") == len(found)
    for question, scale, _ in found:
        assert question_named(question).name == question
        assert scale in SCALES


def test_the_committed_page_is_what_the_scores_say() -> None:
    text = command.PAGE.read_text()
    for question, scale, body in ((one[1], one[2], one[3]) for one in command_blocks(text)):
        assert body == command.section(command.RESULTS, question, scale).text()


def test_nothing_is_left_to_fill_in() -> None:
    for page in (command.PAGE, command.ROOT / "README.md"):
        assert not re.findall(r"@@|\bXX\b|\bTODO\b", page.read_text(encoding="utf-8"))


def command_blocks(text: str) -> list[Any]:
    """Return the generated blocks of a page."""
    found = list(BLOCK.finditer(text))
    assert found
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    """A set of textures, which needs no download."""
    return build("mosaics", tmp_path_factory.mktemp("cache"), SetPlan(64, TINY.plan.counts))


def bench(images: SceneSet, folder: Path) -> Bench:
    """Return a bench that writes below `folder`."""
    scale = dataclasses.replace(TINY, fractions={1.0: 2}, labels=(16,))
    return Bench(scale, images, Records(folder / "lines.jsonl", scale, images.fingerprint), folder / "runs")


def test_a_row_is_pretrained_measured_at_each_start_and_its_weights_deleted(images: SceneSet, tmp_path: Path) -> None:
    place = bench(images, tmp_path)
    row = Row(
        "DeCon", Pretraining("decon-sl-densecl", {"hidden": 16, "dim": 8, "queue": 32}), None, "fpn", ("encoder", "all")
    )
    run_row(place, row, "segment", 0)
    assert place.missing(row, "segment", 0) == []
    found = place.records.found(row, "segment")
    assert {cell.at for cell in found} == {"encoder", "all"}
    assert all(line["facts"]["pretrain_seconds"] >= 0 for line in found.values())
    assert list((tmp_path / "runs").iterdir()) == []
    lines = place.records.path.read_text()
    run_row(place, row, "segment", 0)
    assert place.records.path.read_text() == lines


def test_frozen_maps_of_untrained_weights_are_measured_at_every_tap(images: SceneSet, tmp_path: Path) -> None:
    place, row = bench(images, tmp_path), dataclasses.replace(RANDOM, network="fpn")
    run_row(place, row, "frozen", 0, keep=True)
    found = place.records.found(row, "frozen")
    assert {cell.at for cell in found} == {f"{tap} {kind}" for tap in ("encoder", "decoder") for kind in TINY.protocols}
    assert all(0 <= line["scores"]["mIoU"] <= 1 for line in found.values())
    folder = place.folder(row, 0)
    before = (folder / "exported" / "model.safetensors").read_bytes()
    measure.weights(place, row, 0)
    assert (folder / "exported" / "model.safetensors").read_bytes() == before


def test_whole_images_are_classified_by_their_neighbours(images: SceneSet, tmp_path: Path) -> None:
    place, row = bench(images, tmp_path), dataclasses.replace(RANDOM, network="fpn")
    run_row(place, row, "image", 0)
    (cell, line), *others = place.records.found(row, "image").items()
    assert (cell.at, cell.labels, others) == ("random", 1.0, [])
    assert set(line["scores"]) == {"accuracy"}
    assert 0 <= line["scores"]["accuracy"] <= 1
    table = Section(Question("pieces", "Pieces", "image", (row,)), place.records).text()
    assert table.startswith("accuracy in %, by share of the labels:")
    assert f"| {row.name} | nothing | {100 * line['scores']['accuracy']:.1f} (n = 1) |" in table


def test_joint_rows_include_the_starts_that_a_user_has() -> None:
    names = [row.name for row in JOINT]
    assert names[:2] == [RANDOM.name, IMAGENET.name]
    assert len(set(names)) == len(names)


def test_scores_of_other_images_are_said_to_count_no_longer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.remember(tmp_path, TINY, "aaa")
    command.remember(tmp_path, TINY, "aaa")
    assert capsys.readouterr().out == ""
    command.remember(tmp_path, TINY, "bbb")
    assert "fingerprint bbb, but the known scores are about those with aaa" in capsys.readouterr().out
    assert command.known_images(tmp_path) == {TINY.name: "bbb"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--questions", "detekt"], "There is no question 'detekt'; did you mean 'detect'?"),
        (["--questions", "detect", "--rows", "ImageNet"], "There is no row of detect 'ImageNet'"),
        (["--questions", "pieces"], "The scale 'tiny' has no network 'vit', which these questions are about"),
        (["--questions", "segment", "--seeds", "0", "-1"], "--seeds has -1; seeds start at 0."),
    ],
)
def test_options_that_do_not_fit_are_told_before_anything_is_made(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--cache", str(tmp_path / "cache"), "--results", str(tmp_path / "results")]
    assert command.main(["--scale", "tiny", *folders, *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"benchmarks.evidence: {told}")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_scores_does_not_empty_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- summary -->\nknown\n<!-- end -->\n", encoding="utf-8")
    before = page.read_bytes()
    assert command.main(["--only-page", "--page", str(page), "--results", str(tmp_path / "typo")]) == 2
    assert "has no scores of the study; specify their folder with --results." in capsys.readouterr().err
    assert page.read_bytes() == before


def test_a_page_that_cannot_be_read_is_told_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "none.md"
    assert command.main(["--scale", "tiny", "--cache", str(tmp_path / "cache"), "--page", str(page)]) == 1
    assert str(page) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_the_study_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "study", stopped)
    assert command.main(["--scale", "tiny", "--cache", str(tmp_path)]) == 130
    assert "the same command continues it" in capsys.readouterr().err
