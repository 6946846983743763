"""Tables of the study, from whatever scores are known; a score that is missing is shown as missing.

docs/results.md holds `<!-- study QUESTION SCALE -->`, the tables, and `<!-- end -->`; the text around them is written
by hand. Scores are in per cent, mean ± half of the 95 % interval over seeds (Student's t), which takes three seeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.evidence.records import Line, Records
from benchmarks.evidence.rows import Measure, Pair, Question, Row
from benchmarks.evidence.statistics import Estimate, estimate, paired

TAKEN = {"random": "nothing", "encoder": "encoder", "all": "encoder + decoder"}
LEAST_SEEDS = 3  # for an interval
BLOCK = re.compile(r"<!-- study ([\w-]+) ([\w-]+) -->\n((?:(?!<!--).)*?)<!-- end -->", re.DOTALL)

DIFFERENCES = "Differences in points, paired by seed; **bold** where the interval excludes zero:\n\n"

Key = tuple[str, str, float]
"""Row, tap and protocol or start, labels."""


@dataclass(frozen=True)
class Section:
    """A question on one scale: what is known of it."""

    question: Question
    records: Records

    def scores(self, name: str = "mIoU") -> dict[Key, dict[int, float]]:
        """Return the scores called `name` in per cent by seed."""
        table: dict[Key, dict[int, float]] = {}
        for line in self.lines():
            by_seed = table.setdefault((line["row"], line["at"], line["labels"]), {})
            by_seed[line["seed"]] = 100 * line["scores"][name]
        return table

    def lines(self) -> list[Line]:
        """Return the lines with scores of all rows."""
        measure = self.question.measure
        found = (self.records.found(row, measure).items() for row in self.question.rows)
        return [line for one in found for cell, line in one if cell.kind == "score"]

    def text(self) -> str:
        """Return the tables, and where their numbers come from."""
        lines = self.lines()
        if not lines:
            return "Not run yet.\n"
        if self.question.measure == "frozen":
            parts = self.frozen_tables()
        else:
            parts = [table for name in shown_scores(self.question.measure) for table in self.finetuned_tables(name)]
        return "\n\n".join([*(part for part in parts if part), self.provenance(lines)]) + "\n"

    def frozen_tables(self) -> list[str]:
        """Return one table for each protocol: rows down, taps and numbers of labels across."""
        one, scores = self.records.scale, self.scores()
        tables = []
        for protocol in one.protocols:
            columns = [(f"{tap} {protocol}", labels) for tap in one.taps for labels in one.labels]
            heads = [f"{at.split()[0]}, {labelled(labels)}" for at, labels in columns]
            body = {
                (row.name,): [scores.get((row.name, at, labels), {}) for at, labels in columns]
                for row in self.question.rows
            }
            tables.append(f"mIoU in %, {protocol}:\n\n" + self.table(["start"], heads, body, cell))
            differences = {
                (pair.row, pair.other): [
                    paired(scores.get((pair.row, at, labels), {}), scores.get((pair.other, at, labels), {}))
                    for at, labels in columns
                ]
                for pair in self.question.pairs
            }
            known = {sides: found for sides, found in differences.items() if any(found)}
            if known:
                tables.append(DIFFERENCES + self.table(["start", "minus"], heads, known, difference))
        return tables

    def finetuned_tables(self, name: str) -> list[str]:
        """Return the table of a score after fine-tuning, and the one of its differences."""
        return [self.start_table(name), self.pair_table(name)]

    def start_table(self, name: str) -> str:
        """Return the scores after fine-tuning: rows and what is taken along down, shares of the labels across."""
        fractions, scores = list(self.records.scale.steps(self.question.measure)), self.scores(name)
        body = {
            (row.name, TAKEN[start]): [scores.get((row.name, start, part), {}) for part in fractions]
            for row in self.question.rows
            for start in row.starts
        }
        heads = [f"{100 * part:g} %" for part in fractions]
        return f"{name} in %, by share of the labels:\n\n" + self.table(["start", "taken along"], heads, body, cell)

    def pair_table(self, name: str) -> str:
        """Return the differences that were asked for, seed by seed."""
        fractions, scores = list(self.records.scale.steps(self.question.measure)), self.scores(name)

        def sides(pair: Pair) -> tuple[str, str]:
            return f"{pair.row}, {TAKEN[pair.start]}", f"{pair.other}, {TAKEN[pair.other_start]}"

        body = {
            sides(pair): [
                paired(
                    scores.get((pair.row, pair.start, part), {}), scores.get((pair.other, pair.other_start, part), {})
                )
                for part in fractions
            ]
            for pair in self.question.pairs
        }
        known = {pair: found for pair, found in body.items() if any(found)}
        if not known:
            return ""
        heads = [f"{100 * part:g} %" for part in fractions]
        return DIFFERENCES + self.table(["start", "minus"], heads, known, difference)

    def table(
        self,
        names: Sequence[str],
        heads: Sequence[str],
        body: Mapping[tuple[str, ...], Sequence[Any]],
        show: Callable[[Any, int], str],
    ) -> str:
        """Return a table; rows without any score are listed below it."""
        seeds = len(self.records.scale.seeds)
        lines = [line_of([*names, *heads]), line_of(["---"] * len(names) + ["---:"] * len(heads))]
        lines += [line_of([*key, *(show(one, seeds) for one in found)]) for key, found in body.items() if any(found)]
        lacking = [" (".join(key) + ")" * (len(key) - 1) for key, found in body.items() if not any(found)]
        return "\n".join([*lines, *([f"\nNot run: {'; '.join(lacking)}."] if lacking else [])])

    def provenance(self, lines: Sequence[Mapping[str, Any]]) -> str:
        """Return the command, the images, the machine, the time of pre-training and the dates."""
        seconds: dict[str, list[float]] = {}
        for line in lines:
            if "pretrain_seconds" in line["facts"]:
                seconds.setdefault(line["row"], []).append(line["facts"]["pretrain_seconds"])
        took = "; ".join(f"{row} {median(values):.0f} s" for row, values in seconds.items())
        facts = [line["facts"] for line in lines]
        dates = sorted({line["date"] for line in lines})
        scale = self.records.scale.name
        return "\n".join(
            [
                f"Command: `python -m benchmarks.evidence --scale {scale} --questions {self.question.name}`  ",
                f"Images: `{self.records.scale.images}`, fingerprint {self.records.images}  ",
                *([f"Pre-training (median over seeds, on a machine with other work): {took}  "] if took else []),
                f"Machine: {'; '.join(sorted({one['machine'] for one in facts}))}  ",
                f"Date: {dates[0]} to {dates[-1]}",
            ]
        )


def shown_scores(measure: Measure) -> tuple[str, ...]:
    """Return the names of the scores that a measure has a table for."""
    return {"detect": ("box AP", "mask AP"), "image": ("accuracy",)}.get(measure, ("mIoU",))


def labelled(labels: float) -> str:
    """Return a number or a share of labelled images in words."""
    return "all labels" if labels == 1.0 else f"{labels:g} labels"


def line_of(cells: Sequence[str]) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(cells)} |"


def cell(values: Mapping[int, float], seeds: int) -> str:
    """Return a score with its interval, and its number of seeds where some are missing."""
    return number(estimate(list(values.values())), seeds, "{:.1f}") if values else ""


def difference(found: Estimate | None, seeds: int) -> str:
    """Return a difference with its interval."""
    if found is None:
        return ""
    text = number(found, seeds, "{:+.1f}")
    return f"**{text}**" if found.count >= LEAST_SEEDS and (found.above_zero or found.below_zero) else text


def number(found: Estimate, seeds: int, form: str) -> str:
    """Return a mean, with an interval where there are seeds enough for one."""
    known = found.half is not None and found.count >= LEAST_SEEDS
    spread = f" ± {found.half:.1f}" if known else ""
    return f"{form.format(found.mean)}{spread}{'' if found.count == seeds else f' (n = {found.count})'}"


def update_page(page: Path, section_of: Callable[[str, str], Section]) -> bool:
    """Bring the tables of a page up to date; return whether anything changed."""

    def fresh(match: re.Match[str]) -> str:
        question, scale = match[1], match[2]
        return f"<!-- study {question} {scale} -->\n{section_of(question, scale).text()}<!-- end -->"

    return rewrite(page, BLOCK, fresh)


def rewrite(page: Path, block: re.Pattern[str], fresh: Callable[[re.Match[str]], str]) -> bool:
    """Replace the blocks of a page; return whether anything changed."""
    before = page.read_text(encoding="utf-8")
    after = block.sub(fresh, before)
    if after != before:
        page.write_text(after, encoding="utf-8")
    return after != before


def rows_of(question: Question, names: Sequence[str] | None) -> list[Row]:
    """Return the rows of a question, or those of them that are named."""
    return [row for row in question.rows if names is None or row.name in names]
