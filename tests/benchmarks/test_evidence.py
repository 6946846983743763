"""The study counts only what was measured with its settings, goes on where it stopped, and says what is missing."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from benchmarks.evidence.arms import BUDGETS, TINY, Arm, Budget
from benchmarks.evidence.comparisons import Question
from benchmarks.evidence.page import Section, page
from benchmarks.evidence.questions import QUESTIONS, SEGMENTATION, arm_named
from benchmarks.evidence.records import Cell, Records
from benchmarks.evidence.statistics import Estimate, estimate, paired

from dovetail.errors import DovetailError
from dovetail.recipes.table import options_of

BUDGET = dataclasses.replace(BUDGETS[TINY], seeds=(0,))
FLOOR = arm_named("colour histogram alone")
SCRATCH = arm_named("from scratch")
DATA = {"stamps": "data"}
TEXTURES = dataclasses.replace(
    BUDGETS[TINY],
    home="mosaics",
    counts={"unlabelled": 16, "train": 60, "val": 2, "test": 4},
    batch_size=4,
    vit="timm.create_model('test_vit', patch_size=8)+fpn(channels=16)",
)
ARMS = [arm for question in QUESTIONS for arm in question.arms]


def test_an_interval_by_hand() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.count) == (3.0, 5)
    assert found.half == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5))  # t(4) s / sqrt(n)
    two = estimate([1.0, 3.0])
    assert two.half == pytest.approx(12.706)
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
        ([9.0], *2 * [False]),
    ],
)
def test_a_difference_is_told_only_by_its_whole_interval(values: list[float], above: bool, below: bool) -> None:
    found = estimate(values)
    assert (found.above_zero, found.below_zero) == (above, below)


def score(arm: Arm, seed: int, *, start: str = "random", fraction: float = 0.5) -> Cell:
    """Return the cell of a score."""
    return Cell("score", arm.name, start, fraction, seed)


FACTS: dict[str, Any] = {"scores": {"mIoU": 0.25}, "images": 4, "machine": "here", "lr": 1e-3, "device": "cpu"}


def test_a_line_counts_for_its_settings_alone(tmp_path: Path) -> None:
    records = Records(tmp_path / "a.jsonl", BUDGET, DATA)
    records.add(SCRATCH, score(SCRATCH, 0), FACTS)
    assert list(records.found(SCRATCH)) == [score(SCRATCH, 0)]
    others = [
        dataclasses.replace(records, budget=dataclasses.replace(BUDGET, steps=3)),
        dataclasses.replace(records, data={"stamps": "other scenes"}),
    ]
    assert all(other.found(SCRATCH) == {} for other in others)
    assert records.found(dataclasses.replace(SCRATCH, encoder_lr_scale=0.5)) == {}
    more = dataclasses.replace(BUDGET, seeds=(0, 1, 2), fractions=(0.1, 0.5))
    assert list(dataclasses.replace(records, budget=more).found(SCRATCH)) == [score(SCRATCH, 0)]


def test_the_recipe_of_one_method_leaves_the_lines_of_others() -> None:
    changed = dict(BUDGET.recipes) | {"densecl": {**BUDGET.recipes["densecl"], "queue": 7}}
    one = Records(Path("x"), BUDGET, DATA)
    other = Records(Path("x"), dataclasses.replace(BUDGET, recipes=changed), DATA)
    assert one.mark(SCRATCH) == other.mark(SCRATCH)
    assert one.mark(arm_named("slotcon")) == other.mark(arm_named("slotcon"))
    assert one.mark(arm_named("decon-sl-densecl")) != other.mark(arm_named("decon-sl-densecl"))


def test_what_later_arms_need_leaves_lines_alone(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class LaterArm(Arm):
        alpha: float | None = None

    fields = {one.name: getattr(SCRATCH, one.name) for one in dataclasses.fields(SCRATCH)}
    records = Records(tmp_path / "a.jsonl", BUDGET, DATA)
    assert records.mark(LaterArm(**fields)) == records.mark(SCRATCH)
    assert records.mark(LaterArm(**fields, alpha=0.3)) != records.mark(SCRATCH)


def test_a_line_that_was_cut_off_costs_only_itself(tmp_path: Path) -> None:
    records = Records(tmp_path / "a.jsonl", BUDGET, DATA)
    records.add(SCRATCH, score(SCRATCH, 0), FACTS)
    records.add(SCRATCH, score(SCRATCH, 1), FACTS)
    text = records.path.read_text()
    records.path.write_text(text[: len(text) - 30])
    assert list(records.found(SCRATCH)) == [score(SCRATCH, 0)]
    records.add(SCRATCH, score(SCRATCH, 2), FACTS)
    assert list(records.found(SCRATCH)) == [score(SCRATCH, 0), score(SCRATCH, 2)]


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=list(BUDGETS))
def test_every_option_is_one_of_the_method(budget: Budget) -> None:
    for arm in ARMS:
        if arm.method is not None:
            assert set(budget.recipe(arm)) <= set(options_of(arm.method)), arm.name
    assert budget.rate_fraction <= 1
    assert set(budget.counts) == {"unlabelled", "train", "val", "test"}


def test_arms_have_names_of_their_own() -> None:
    assert len({arm.name for arm in ARMS}) == len(ARMS)
    assert len({question.name for question in QUESTIONS}) == len(QUESTIONS)


@pytest.mark.parametrize("question", QUESTIONS, ids=[question.name for question in QUESTIONS])
def test_comparisons_are_between_rows(question: Question) -> None:
    rows = {(arm.name, start) for arm in ARMS for start in arm.starts}
    assert question.comparisons
    for one in question.comparisons:
        assert {(one.arm, one.start), (one.other, one.other_start)} <= rows
        assert (one.arm, one.start) != (one.other, one.other_start)
        assert one.arm in {arm.name for arm in question.arms}


@pytest.mark.parametrize("question", QUESTIONS, ids=[question.name for question in QUESTIONS])
def test_a_floor_stands_beside_every_score(question: Question, tmp_path: Path) -> None:
    rows = Section(question, Records(tmp_path / "none.jsonl", BUDGET, DATA)).rows
    floors = [arm for arm in rows if arm.cue is not None]
    assert floors
    assert {(arm.measured_on, arm.measure) for arm in floors} == {(arm.measured_on, arm.measure) for arm in rows}
    assert len({arm.cue for arm in floors}) == len(floors)


def test_each_method_is_compared_with_its_base_and_with_scratch() -> None:
    found = {(one.arm, one.start, one.other) for one in QUESTIONS[0].comparisons}
    assert ("decon-ml-pixpro", "all", "pixpro") in found
    assert ("decon-sl", "encoder", "slotcon") in found
    assert ("pixpro", "encoder", "from scratch") in found
    assert ("decon-sl", "all", "decon-sl") in found
    assert ("densecl, rooms", "encoder", "from scratch, rooms") in {
        (one.arm, one.start, one.other) for question in QUESTIONS for one in question.comparisons
    }


def test_an_arm_elsewhere_counts_with_both_sets() -> None:
    arm = arm_named("densecl, rooms")
    records = Records(Path("x"), BUDGET, {"stamps": "one", "rooms": "two"})
    assert records.scenes(arm) == "one+two"
    assert records.scenes(SCRATCH) == "one"
    other = dataclasses.replace(records, data={"stamps": "one", "rooms": "three"})
    assert records.mark(SCRATCH) == other.mark(SCRATCH)
    assert records.mark(arm) != other.mark(arm)


def test_arms_say_which_network_they_use() -> None:
    budget = BUDGETS["cpu"]
    unet, vit = arm_named("densecl, unet"), arm_named("dino")
    assert (budget.pretrained_model(unet), budget.finetuned_model(unet)) == (budget.model, budget.unet)
    assert budget.pretrained_model(vit) == budget.finetuned_model(vit) == budget.vit
    assert budget.recipe(arm_named("decon-sl-densecl, alpha 0.25"))["alpha"] == 0.25


def test_an_unknown_arm_is_named() -> None:
    with pytest.raises(DovetailError, match="decon-sl"):
        arm_named("decon-sll")


def full(records: Records, values: dict[tuple[str, str], list[float]]) -> None:
    """Write a line for each row, seed and share."""
    for (name, start), scores in values.items():
        for seed, value in enumerate(scores):
            for fraction in records.budget.fractions:
                cell = Cell("score", name, start, fraction, seed)
                records.add(arm_named(name), cell, {**FACTS, "scores": {"mIoU": value}})


def test_an_empty_page_says_that_nothing_was_run(tmp_path: Path) -> None:
    text = page([Records(tmp_path / "none.jsonl", BUDGETS["gpu"], {})])
    cells = sum(len(arm.starts) for arm in SEGMENTATION) * 4 * 5
    assert f"Budget `gpu`: **none of the {cells} fine-tunings has been run.**" in text
    asked = [question for question in QUESTIONS if question.asked_in("gpu")]
    assert text.count(" has been run.**") == len(asked)
    assert all(f"## {question.title}\n" in text for question in asked)
    assert "too few runs have been fine-tuned" in text
    assert "| ---" not in text


def test_the_page_says_what_is_missing(tmp_path: Path) -> None:
    budget = dataclasses.replace(BUDGET, seeds=(0, 1, 2), fractions=(0.5,))
    records = Records(tmp_path / "some.jsonl", budget, DATA)
    full(records, {("from scratch", "random"): [0.10, 0.12, 0.14], ("densecl", "encoder"): [0.20]})
    records.add(SCRATCH, Cell("rate", SCRATCH.name, "random", 0.5, 0, 1e-3), {**FACTS, "scores": {"mIoU": 0.99}})
    text = page([records])
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("|")}
    assert rows["from scratch"] == "| from scratch |  |  | 12.0 ± 5.0 |"
    assert rows["`densecl`"] == "| `densecl` |  | encoder | 20.0 (n = 1 of 3) |"
    assert "`pixpro`" not in rows
    assert "`pixpro`, encoder" in next(line for line in text.splitlines() if line.startswith("Not run: "))
    rows_of_all = sum(len(arm.starts) for arm in SEGMENTATION)
    assert f"**4 of {3 * rows_of_all} fine-tunings have been run; {rows_of_all - 1} of {rows_of_all} cells lack" in text
    assert "| densecl, encoder | from scratch | +10.0 (n = 1 of 3) |" in text
    assert f"Not run: {len(QUESTIONS[0].comparisons) - 1} other differences." in text
    assert "99" not in text


def test_a_share_that_is_missing_in_a_row_is_said_in_its_cell(tmp_path: Path) -> None:
    records = Records(tmp_path / "some.jsonl", dataclasses.replace(BUDGET, fractions=(0.5,)), DATA)
    full(records, {("from scratch", "random"): [0.10]})
    text = page([dataclasses.replace(records, budget=dataclasses.replace(BUDGET, fractions=(0.5, 1.0)))])
    assert "| from scratch |  |  | 10.0 | not run |" in text
    assert "differences can be told yet" in text


@pytest.mark.parametrize(("scratch", "said"), [(0.14, True), (0.16, False)])
def test_scores_hardly_above_a_floor_are_called_so(tmp_path: Path, scratch: float, said: bool) -> None:
    records = Records(tmp_path / "some.jsonl", BUDGET, DATA)
    full(records, {("from scratch", "random"): [scratch], ("edges alone", "random"): [0.12]})
    full(records, {("one label everywhere", "random"): [0.08]})
    assert ("(14.0) is less than 3 points above edges alone (12.0)" in page([records])) == said


def test_a_difference_is_bold_where_its_interval_leaves_out_zero(tmp_path: Path) -> None:
    budget = dataclasses.replace(BUDGET, seeds=(0, 1, 2), fractions=(0.5,))
    records = Records(tmp_path / "some.jsonl", budget, DATA)
    base, better = [0.10, 0.20, 0.30], [0.110, 0.211, 0.309]
    full(
        records,
        {
            ("from scratch", "random"): [0.3, 0.1, 0.1],
            ("densecl", "encoder"): base,
            ("decon-sl-densecl", "encoder"): better,
        },
    )
    text = page([records])
    assert "| decon-sl-densecl, encoder | densecl, encoder | **+1.0 ± 0.2** |" in text
    assert "| densecl, encoder | from scratch | +3.3 ± 51.7 |" in text
