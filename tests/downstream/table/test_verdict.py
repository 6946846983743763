"""Sentences over paired differences, with answers that are known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from dovetail.downstream.table.results import Row, half_width, over_seeds
from dovetail.downstream.table.verdict import images_for, paired, verdict
from dovetail.errors import RunError


def rows(values: Mapping[str, Sequence[float]], *, images: int = 5) -> list[Row]:
    """Return a table of one number of images: starts with their scores in per cent."""
    return [
        Row(
            {"start": start, "fraction": 0.1, "images": images},
            {"mIoU": over_seeds([one / 100 for one in some]), "aAcc": over_seeds([0.5] * len(some))},
        )
        for start, some in values.items()
    ]


def test_students_interval_is_that_of_the_tables() -> None:
    assert half_width(2.0, 4) == pytest.approx(3.1824, abs=1e-3)  # 3.1824 * 2 / sqrt(4)
    found = paired([0.12, 0.14, 0.16], [0.10, 0.11, 0.12])  # differences of 2, 3 and 4 points
    assert (found.mean, found.half_width, found.seeds) == (pytest.approx(3.0), pytest.approx(2.4841, abs=1e-3), 3)
    assert found.shown
    with pytest.raises(RunError, match="cannot be paired"):
        paired([0.1], [0.1, 0.2])


def test_seeds_that_are_needed_are_the_fewest_that_would_show_it() -> None:
    found = paired([0.10, 0.16, 0.14, 0.12], [0.12, 0.12, 0.12, 0.12])  # -2, 4, 2, 0: mean 1, deviation 2.58
    assert not found.shown
    assert found.needed is not None
    deviation = 2.5820
    assert half_width(deviation, found.needed) < 1.0 <= half_width(deviation, found.needed - 1)
    assert paired([0.2] * 3, [0.2] * 3).needed is None


def test_pairs_show_what_separate_spreads_hide() -> None:
    random, everything = [10.0, 20.0, 30.0], [12.0, 22.1, 32.2]
    (told, signs) = verdict(rows({"random": random, "all": everything}))
    assert told == (
        "With 5 labelled images pre-training gained +2.1 ± 0.2 mIoU over random weights (3 seeds, paired): it helped."
    )
    assert "95 % interval" in signs


def test_imagenet_is_the_alternative_where_it_was_measured() -> None:
    table = {"random": [5.0] * 3, "imagenet": [20.0, 21.0, 22.0], "all": [17.0, 18.0, 19.1]}
    assert "-3.0 ± 0.1 mIoU against ImageNet weights (3 seeds, paired): it harmed." in verdict(rows(table))[0]


def test_what_cannot_be_shown_is_not_claimed() -> None:
    table = {"imagenet": [10.0, 12.0, 14.0], "all": [12.0, 11.0, 14.5]}
    told = verdict(rows(table))[0]
    assert "no difference between pre-training and ImageNet weights can be shown: +0.5 ± 3.7 mIoU" in told
    assert re.search(r"To show a difference of this size, about \d+ seeds would be needed\.$", told)
    few = verdict(rows({"random": [10.0, 12.0], "all": [30.0, 31.0]}))
    assert few == (
        "With 5 labelled images pre-training is +19.5 mIoU from random weights with 2 seeds, which is too few to tell; "
        "use --seeds 5.",
    )


def test_few_steps_are_told_once_below_a_verdict() -> None:
    table = {"random": [10.0, 10.1, 10.2], "encoder": [7.0, 7.1, 7.2], "all": [12.0, 12.1, 12.3]}
    plain = verdict(rows(table))
    end = "Fine-tunings of fewer than 200 steps say little about pre-training; use --steps 200 or more."
    assert verdict(rows(table), steps=[10] * 9) == (*plain[:-1], f"The trials took 10 steps. {end}", plain[-1])
    assert f"The shortest trials took 1 step. {end}" in verdict(rows(table), steps=[300, 1])
    assert verdict(rows(table), steps=[200] * 9) == plain
    assert verdict(rows({"all": [1.0, 2, 3]}), steps=[10] * 3) == ()


def test_the_decoder_is_judged_by_itself_and_a_lone_start_by_nobody() -> None:
    told = verdict(rows({"random": [1.0, 1, 1], "encoder": [10.0, 11, 12], "all": [13.0, 14, 15.1]}))
    assert "the pre-trained decoder gained +3.0 ± 0.1 mIoU over the pre-trained encoder" in told[1]
    assert verdict(rows({"all": [1.0, 2, 3]})) == ()
    assert verdict(rows({"random": [1.0, 2, 3]})) == ()


def test_images_that_are_needed_are_those_at_which_the_interval_leaves_zero_out() -> None:
    """Of a score that is a mean over images, the interval is known: 1.96 deviations over the root of the images."""
    rng = np.random.default_rng(0)
    first, second = rng.random((3, 50)), rng.random((3, 50))  # seeds, test images
    moves = [(one - one.mean(axis=1, keepdims=True)) / 50 for one in (first, second)]
    difference = first.mean(axis=0) - second.mean(axis=0)
    mean, deviation = 100 * difference.mean(), 100 * difference.std(ddof=1)
    images, needed = images_for(mean, moves[0].tolist(), moves[1].tolist())
    assert images == 50
    assert 1.96 * deviation / np.sqrt(needed) <= abs(mean) < 1.96 * deviation / np.sqrt(needed - 1)
    assert images_for(0.0, moves[0].tolist(), moves[1].tolist()) == (50, float("inf"))
    assert images_for(1.0, [()], [()])[0] == 0  # of trials from before this was noted
    assert images_for(1.0, moves[0].tolist(), moves[1][:, :40].tolist())[0] == 0  # other test images


def test_what_cannot_be_shown_says_how_many_seeds_and_test_images_it_takes() -> None:
    table = {"imagenet": [10.0, 12.0, 14.0], "all": [12.0, 11.0, 14.5]}
    alike, apart = [0.0] * 28, [0.03 * (-1) ** image / 28 for image in range(28)]

    def told(moves: Sequence[float]) -> str:
        return verdict(rows(table), {("all", 0.1): [moves] * 3, ("imagenet", 0.1): [alike] * 3})[0]

    assert re.search(
        r"about \d+ seeds and, for it to hold on other images, about \d+ test images \(there are 28\) would be needed",
        told([2 * one for one in apart]),
    )
    assert re.search(r"about \d+ seeds on these 28 test images would be needed\.$", told([0.2 * one for one in apart]))
