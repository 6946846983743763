"""The page docs/results.md, from whatever lines there are; what is not measured yet is said, not left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.evidence.arms import ALL, ENCODER, RANDOM, Arm, Budget, Measure
from benchmarks.evidence.comparisons import Comparison, Question
from benchmarks.evidence.prose import FOUND, INTRODUCTION, NOT_RUN, PICTURES, SCENES
from benchmarks.evidence.questions import QUESTIONS
from benchmarks.evidence.records import Records
from benchmarks.evidence.signals import TITLE, signal_parts
from benchmarks.evidence.statistics import Estimate, estimate, paired
from benchmarks.evidence.trial import PROBES
from dovetail.recipes import presets

Scores = Mapping[tuple[str, str, str], Mapping[int, float]]
"""(arm, start, column) -> seed -> score in per cent."""

TAKEN = {RANDOM: "", ENCODER: "encoder", ALL: "encoder + decoder"}
MEASURED: Mapping[Measure, str] = {
    "segmentation": "mIoU in %, by share of the labelled scenes:\n",
    "detection": "AP of boxes and of masks in % by COCO's counting, by share of the labelled scenes:\n",
    "frozen": "Top-1 accuracy in %:\n",
}
EMPTY = "not run"
HARDLY = 3.0  # points of mIoU


@dataclass(frozen=True)
class Section:
    """What is known of one question for one budget."""

    question: Question
    records: Records

    @property
    def budget(self) -> Budget:
        """Its sizes."""
        return self.records.budget

    @property
    def arms(self) -> list[Arm]:
        """Its rows, and those of other questions that it compares with."""
        own = {arm.name for arm in self.question.arms}
        named = {one.other for one in self.question.comparisons}
        every = (arm for question in QUESTIONS for arm in question.arms)
        return [*(arm for arm in every if arm.name in named - own), *self.question.arms]

    @property
    def rows(self) -> list[Arm]:
        """Its rows, and the floors without a network that others have on the same set."""
        own, place = self.arms, self.question.arms[0].measured_on
        cues = {arm.cue for arm in own}
        others = (arm for question in QUESTIONS for arm in question.arms if arm.cue is not None)
        alike = (arm for arm in others if arm.measured_on == place and arm.measure == self.measure)
        return [*own, *(arm for arm in alike if arm.cue not in cues)]

    @property
    def measure(self) -> Measure:
        """What is measured of all its rows."""
        return self.question.arms[0].measure

    @property
    def frozen(self) -> bool:
        """Whether encoders are measured as they are, without fine-tuning."""
        return self.measure == "frozen"

    @property
    def columns(self) -> dict[str, tuple[float, str]]:
        """Heading -> share of the labels, and the score."""
        if self.frozen:
            return {name: (1.0, name) for name in PROBES}
        shares = {f"{100 * part:g} %": part for part in self.budget.fractions}
        if self.measure == "detection":
            return {f"{kind} {name}": (part, f"{kind} AP") for kind in ("box", "mask") for name, part in shares.items()}
        return {name: (part, "mIoU") for name, part in shares.items()}

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines with scores that count, of all arms."""
        parts = {part for part, _ in self.columns.values()}
        return [
            line
            for arm in self.rows
            for cell, line in self.records.found(arm).items()
            if cell.kind == "score" and cell.fraction in parts and cell.seed in self.budget.seeds
        ]

    def scores(self) -> Scores:
        """Return scores in per cent by row, column and seed."""
        table: dict[tuple[str, str, str], dict[int, float]] = {}
        for line in self.lines():
            for column, (part, name) in self.columns.items():
                if line["fraction"] == part:
                    row = table.setdefault((line["arm"], line["start"], column), {})
                    row[line["seed"]] = 100 * line["scores"][name]
        return table

    def seconds(self) -> dict[str, str]:
        """Return how long each row's pre-training took, the median over seeds."""
        found: dict[str, dict[int, float]] = {}
        for line in self.lines():
            if line.get("pretrain_seconds"):
                found.setdefault(line["arm"], {})[line["seed"]] = line["pretrain_seconds"]
        return {name: f"{median(values.values()):.0f}" for name, values in found.items()}


def page(records: Sequence[Records]) -> str:
    """Return the whole page in markdown, from the lines of some budgets."""
    found = [FOUND] if any(one.budget.name == "cpu" for one in records) else []
    parts = [
        INTRODUCTION,
        *found,
        "## Budgets\n",
        *(f"- `{one.budget.name}`: {sizes(one.budget)}" for one in records),
        "",
    ]
    for question in QUESTIONS:
        parts.append(f"## {question.title}\n")
        for one in records:
            if question.asked_in(one.budget.name):
                parts += section_parts(Section(question, one))
    parts += [TITLE, *(part for one in records for part in signal_parts(one))]
    return "\n".join([*parts, PICTURES, SCENES, NOT_RUN]).rstrip() + "\n"


def section_parts(section: Section) -> list[str]:
    """Return the parts on one question and budget."""
    budget, scores, lines = section.budget, section.scores(), section.lines()
    columns = [name for name, (_, score) in section.columns.items() if score != "mask AP"]  # it comes with the boxes'
    cells = [(arm.name, start, column) for arm in section.arms for start in arm.starts for column in columns]
    what = "measurements" if section.frozen else "fine-tunings"
    done, wanted = sum(len(scores.get(cell, {})) for cell in cells), len(cells) * len(budget.seeds)
    lacking = [cell for cell in cells if len(scores.get(cell, {})) < len(budget.seeds)]
    if not {line["arm"] for line in lines} & {arm.name for arm in section.question.arms}:
        return [f"Budget `{budget.name}`: **none of the {wanted} {what} has been run.**\n"]
    state = f"{done} of {wanted} {what} have been run"
    if lacking:
        state = f"**{state}; {len(lacking)} of {len(cells)} cells lack seeds, and nothing follows from them yet.**"
    return [
        f"### Budget `{budget.name}`: {section.question.name}\n",
        f"{state}.\n" if not lacking else f"{state}\n",
        MEASURED[section.measure],
        score_table(section, scores),
        floor_note(section, scores),
        "\nDifferences in points, seed by seed; **bold** where the interval leaves out zero:\n",
        difference_table(section, scores),
        "",
        provenance(section, lines),
        "",
    ]


def sizes(budget: Budget) -> str:
    """Return one paragraph on the sizes of a budget."""
    counts, detection = budget.counts, budget.detection
    content = " with few and large objects" if budget.close and budget.home != "mosaics" else ""
    recipes = ", with `--preset short` unless a row says otherwise" if budget.recipes is presets.SHORT else ""
    return (
        f"`{budget.model}` on `{budget.home}`{content}. Pre-training: {counts['unlabelled']:,} images, "
        f"{budget.epochs} epochs of batches of {budget.batch_size}, views of {budget.view_px} px{recipes}. "
        f"Fine-tuning: {budget.steps:,} steps of {budget.finetune_batch} crops of {budget.side_px} px, 100 % being "
        f"{counts['train']:,} labelled images, tested on {counts['test']}; candidates for its rate: "
        f"{listed(budget.rates)}, for `{budget.vit}` {listed(budget.vit_rates)}. Detection: Mask R-CNN on "
        f"`{budget.detector}` and `{budget.objects}`, {detection.get('steps', 0):,} steps of "
        f"{detection.get('batch_size', 0)} images of up to {detection.get('image_size', 0)} px, heads "
        f"{detection.get('head_width', 1):g} times as wide as usual on {detection.get('proposals', 512)} proposals; "
        f"candidates for its rate: {listed(budget.detection_rates)}."
    )


def listed(rates: Sequence[float]) -> str:
    """Return learning rates in words."""
    return ", ".join(f"{rate:g}" for rate in rates)


def score_table(section: Section, scores: Scores) -> str:
    """Return the scores, rows down, shares of the labels across; floors come last, then the names of rows not run."""
    budget, seconds = section.budget, section.seconds()
    lines, lacking = table_head(["pre-training", "s", "taken along"], section), []
    for arm in sorted(section.rows, key=lambda arm: arm.trivial):
        for start in arm.starts:
            found = [scores.get((arm.name, start, column), {}) for column in section.columns]
            if any(found):
                cells = (cell_text(one, budget) for one in found)
                lines.append(row([named(arm), seconds.get(arm.name, ""), TAKEN[start], *cells]))
            else:
                lacking.append(", ".join(part for part in (named(arm), TAKEN[start]) if part))
    return "\n".join([*lines, *([f"\nNot run: {'; '.join(lacking)}."] if lacking else [])])


def floor_note(section: Section, scores: Scores) -> str:
    """Return a warning where training from scratch with all labels is hardly above a floor, "" elsewhere."""
    if section.measure != "segmentation":
        return ""
    part, column = max(section.budget.fractions), list(section.columns)[-1]

    def mean(arm: Arm) -> float | None:
        values = scores.get((arm.name, RANDOM, column), {})
        return estimate(list(values.values())).mean if values else None

    known = [(value, arm) for arm in section.rows if arm.method is None and (value := mean(arm)) is not None]
    floors = [(value, arm.name) for value, arm in known if arm.trivial]
    plain = [value for value, arm in known if not arm.trivial]
    if not floors or not plain or plain[0] >= max(floors)[0] + HARDLY:
        return ""
    best, name = max(floors)
    return (
        f"\nWith {100 * part:g} % of the labels, training from scratch ({plain[0]:.1f}) is less than {HARDLY:g} points "
        f"above {name} ({best:.1f}): so short a fine-tuning has hardly begun to tell classes by more than that cue."
    )


def difference_table(section: Section, scores: Scores) -> str:
    """Return the differences that were asked for; those of which a side is not run are counted."""
    budget = section.budget
    lines, lacking = table_head(["row", "against"], section), 0
    for one in section.question.comparisons:
        found = [
            paired(scores.get((one.arm, one.start, column), {}), scores.get((one.other, one.other_start, column), {}))
            for column in section.columns
        ]
        if any(found):
            lines.append(row([*sides_of(one), *(difference_text(difference, budget) for difference in found)]))
        else:
            lacking += 1
    if len(lines) == 2:
        return f"None of the {lacking} differences can be told yet: no two rows have a seed and a share in common."
    return "\n".join([*lines, *([f"\nNot run: {lacking} other differences."] if lacking else [])])


def table_head(names: Sequence[str], section: Section) -> list[str]:
    """Return the two lines above a table."""
    return [row([*names, *section.columns]), row(["---"] * len(names) + ["---:"] * len(section.columns))]


def row(cells: Sequence[str]) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


def named(arm: Arm) -> str:
    """Return an arm's name as a row shows it."""
    return f"`{arm.name}`" if arm.name == arm.method else arm.name


def sides_of(one: Comparison) -> tuple[str, str]:
    """Return both sides of a comparison in words."""

    def side(arm: str, start: str) -> str:
        taken = TAKEN[RANDOM if start == "random" else ENCODER if start == "encoder" else ALL]
        return f"{arm}, {taken}" if taken else arm

    return side(one.arm, one.start), side(one.other, one.other_start)


def cell_text(values: Mapping[int, float], budget: Budget) -> str:
    """Return a score with its interval, and how many seeds it has where some are missing."""
    if not values:
        return EMPTY
    found = estimate([values[seed] for seed in sorted(values)])
    spread = f" ± {found.half:.1f}" if found.half is not None else ""
    return f"{found.mean:.1f}{spread}{missing_text(found, budget)}"


def difference_text(found: Estimate | None, budget: Budget) -> str:
    """Return a difference with its interval."""
    if found is None:
        return EMPTY
    spread = f" ± {found.half:.1f}" if found.half is not None else ""
    text = f"{found.mean:+.1f}{spread}"
    return f"{f'**{text}**' if found.above_zero or found.below_zero else text}{missing_text(found, budget)}"


def missing_text(found: Estimate, budget: Budget) -> str:
    """Return how many seeds there are where that is not all."""
    return "" if found.count == len(budget.seeds) else f" (n = {found.count} of {len(budget.seeds)})"


def provenance(section: Section, lines: Sequence[Mapping[str, Any]]) -> str:
    """Return where the numbers come from: command, data, machines, versions, dates, rates, time."""
    machines = sorted({f"{line['machine']} ({line.get('device', 'cpu')})" for line in lines})
    versions = sorted({", ".join(f"{name} {number}" for name, number in line["versions"].items()) for line in lines})
    dates = sorted({line["date"] for line in lines})
    rates: dict[tuple[str, str], set[float]] = {}
    for line in lines:
        if "lr" in line:
            rates.setdefault((line["arm"], line["start"]), set()).add(line["lr"])
    chosen = "; ".join(
        f"{arm}{f', {start}' if start != 'random' else ''}: {listed(sorted(found))}"
        for (arm, start), found in rates.items()
    )
    return "\n".join(
        [
            f"Command: `python -m benchmarks.evidence --budget {section.budget.name}`  ",
            f"Scenes: {', '.join(sorted({line['data'] for line in lines}))}  ",
            *([f"Learning rates chosen: {chosen}  "] if chosen else []),
            f"Machine: {'; '.join(machines)}  ",
            f"Versions: {'; '.join(versions)}  ",
            f"Date: {dates[0]} to {dates[-1]}",
        ]
    )
