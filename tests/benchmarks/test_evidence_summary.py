"""The tables at the top of the results page say what their sources measure."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from benchmarks.evidence import __main__ as command
from benchmarks.evidence.records import Cell, Records
from benchmarks.evidence.rows import question_named
from benchmarks.evidence.scales import SCALES
from benchmarks.evidence.summary import BLOCK as SUMMARY
from benchmarks.evidence.summary import (
    BOXES_LONGER,
    DECON_GAIN,
    DECON_OVER_BASE_LONGER,
    FROZEN,
    IMAGES,
    MASKS,
    TABLES,
    TARGETS_GAIN,
    TUNED,
    Comparison,
    Gains,
    Measured,
    shown,
    update_summary,
)
from benchmarks.evidence.tables import Section, shown_scores

FACTS: dict[str, Any] = {"machine": "here", "device": "cpu"}


def known(question: str, scale: str) -> Section:
    return command.section(command.RESULTS, question, scale)


def test_the_committed_summary_is_what_the_scores_say(tmp_path: Path) -> None:
    text = command.PAGE.read_text(encoding="utf-8")
    (table,) = SUMMARY.findall(text)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- summary -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    assert command.main(["--only-page", "--page", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == f"before\n<!-- summary -->\n{table}<!-- end -->\nafter\n"
    assert not update_summary(page, known)


def test_a_table_without_its_end_takes_no_text_along(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = "<!-- summary -->\nold\ntext\n<!-- study segment tiny -->\nold\n<!-- end -->\n"
    page.write_text(text, encoding="utf-8")
    assert not update_summary(page, known)
    assert page.read_text(encoding="utf-8") == text


CELLS = [(one, measured) for table in TABLES for one in table.comparisons for measured in table.measures]


@pytest.mark.parametrize(("one", "measured"), CELLS, ids=lambda part: part.name)
def test_every_line_of_the_summary_says_what_its_sources_measure(one: Comparison, measured: Measured) -> None:
    assert set(measured.sources) <= set(IMAGES)
    for source in (source for sources in measured.sources.values() for source in sources):
        question, scale = question_named(source.question), SCALES[source.scale]
        starts = {(row.name, row.starts[0]) for row in question.rows}
        compared = {(row.name + measured.network, row.starts[0]) for row in (one.first, one.second)}
        assert compared <= starts or one is DECON_OVER_BASE_LONGER
        assert measured.score in shown_scores(question.measure)
        assert measured.name.endswith(f", {measured.score}")
        if measured.tap is None:
            assert question.measure in ("segment", "detect")
            assert source.labels in scale.steps(question.measure)
            labels = round(source.labels * scale.plan.counts["train"])
        else:
            assert question.measure == "frozen"
            assert measured.tap in {f"{tap} {protocol}" for tap in scale.taps for protocol in scale.protocols}
            assert source.labels in scale.labels
            labels = round(source.labels)
        assert f", {labels} labelled images, " in measured.name


@pytest.mark.parametrize("measured", [FROZEN, TUNED, MASKS], ids=lambda part: part.name)
def test_a_difference_in_the_summary_is_that_of_its_source(measured: Measured, tmp_path: Path) -> None:
    (source,) = measured.sources[IMAGES[0]]
    question = question_named(source.question)
    records = Records(tmp_path / "lines.jsonl", SCALES[source.scale], "images")
    rows = {row.name: row for row in question.rows}

    def section_of(name: str, scale: str) -> Section:
        assert (name, scale) == (source.question, source.scale)
        return Section(question, records)

    assert shown(DECON_GAIN.found(measured, IMAGES[0], section_of)) == ""
    expected = ["+1.0 (1)", "+1.5 (2)", "+2.0 ± 2.5 (3)", "**+2.5 ± 2.1** (4)"]
    for seed in range(4):
        for side, score in ((DECON_GAIN.first, 0.31 + 0.01 * seed), (DECON_GAIN.second, 0.30)):
            row = rows[side.name + measured.network]
            cell = Cell(row.name, question.measure, measured.tap or row.starts[0], source.labels, seed)
            records.add(row, cell, {"box AP": 0.0, measured.score: score}, FACTS)
        assert shown(DECON_GAIN.found(measured, IMAGES[0], section_of)) == expected[seed]
    assert DECON_GAIN.found(measured, IMAGES[2], section_of) is None


def test_differences_of_two_renderings_are_pooled_rendering_by_rendering(tmp_path: Path) -> None:
    sections = {}
    for number, source in enumerate(BOXES_LONGER.sources[IMAGES[0]]):
        question, scale = question_named(source.question), SCALES[source.scale]
        records = Records(tmp_path / f"{number}.jsonl", scale, "images")
        sections[source.scale] = Section(question, records)
        for side, score in ((TARGETS_GAIN.first, 0.5 + 0.02 * number), (TARGETS_GAIN.second, 0.4 + 0.1 * number)):
            row = next(row for row in question.rows if row.name == side.name + BOXES_LONGER.network)
            records.add(row, Cell(row.name, "detect", row.starts[0], 1.0, 0), {"box AP": score, "mask AP": 0.0}, FACTS)
    found = TARGETS_GAIN.found(BOXES_LONGER, IMAGES[0], lambda _, scale: sections[scale])
    assert shown(found) == "+6.0 (2)"  # the mean of +10.0 and +2.0; a seed of one rendering is not that of the other


def test_a_line_of_the_summary_needs_five_seeds(tmp_path: Path) -> None:
    question = question_named("starts")
    records = Records(tmp_path / "lines.jsonl", SCALES["tabletop-again"], "images")
    table = Gains("Gains:", (DECON_GAIN,), (dataclasses.replace(TUNED, sources={IMAGES[0]: TUNED.sources[IMAGES[0]]}),))
    lines = []
    for seed in range(5):
        for row, start, score in ((DECON_GAIN.first, "all", 0.5 + 0.01 * seed), (DECON_GAIN.second, "encoder", 0.4)):
            records.add(row, Cell(row.name, "segment", start, 0.05, seed), {"mIoU": score}, FACTS)
        lines.append(table.text(lambda name, scale: Section(question, records)).splitlines()[4:])
    assert lines[:4] == [[], [], [], []]
    assert lines[4] == ["| rendered scenes | fine-tuned, 20 labelled images, mIoU | **+12.0 ± 2.0** (5) |"]
