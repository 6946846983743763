"""What a question of the study is made of: comparisons of rows, and arms made of other arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.evidence.arms import ALL, ENCODER, RANDOM, Arm
from dovetail.transfer.start import Start


@dataclass(frozen=True)
class Comparison:
    """Two rows whose difference is asked for, seed by seed: the first minus the second."""

    arm: str
    start: Start
    other: str
    other_start: Start


@dataclass(frozen=True)
class Question:
    """A section of the page.

    Attributes:
        name: On the command line.
        title: Of the section.
        arms: Its rows.
        comparisons: Its differences.
        budgets: In which it is asked; none for all.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    budgets: tuple[str, ...] = ()

    def asked_in(self, budget: str) -> bool:
        """Whether a budget has this question."""
        return not self.budgets or budget in self.budgets


def over_base_and_scratch(arms: Sequence[Arm], scratch: Arm) -> tuple[Comparison, ...]:
    """Return the differences over scratch, of a method over its base, and of its decoder over none."""
    found = []
    bases = {arm.method: arm.name for arm in arms if arm.method == arm.base and arm.longer == 1}
    for arm in arms:
        if arm.method is None or arm.base is None:
            continue
        for start in arm.starts:
            if arm.method != arm.base and arm.base in bases:
                found.append(Comparison(arm.name, start, bases[arm.base], ENCODER))
            found.append(Comparison(arm.name, start, scratch.name, RANDOM))
        if ALL in arm.starts:
            found.append(Comparison(arm.name, ALL, arm.name, ENCODER))
    return tuple(found)


def variants(plain: Arm, options: Mapping[str, Mapping[str, Any]], **changes: Any) -> tuple[Arm, ...]:
    """Return arms named "PLAIN, what differs", with other options of the recipe."""
    return tuple(
        replace(plain, name=f"{plain.name}, {name}", options={**(plain.options or {}), **one}, **changes)
        for name, one in options.items()
    )


def arm_of(arms: Sequence[Arm], name: str) -> Arm:
    """Return the arm with a name."""
    return next(arm for arm in arms if arm.name == name)


def over_plain_form(arms: Sequence[Arm]) -> tuple[Comparison, ...]:
    """Return the differences of arms named "PLAIN, what differs" over the plain one."""
    return tuple(
        Comparison(arm.name, start, arm.name.rpartition(", ")[0], start) for arm in arms for start in arm.starts
    )


def with_over_without(arms: Sequence[Arm]) -> tuple[Comparison, ...]:
    """Return the differences of taking the decoder along over leaving it."""
    return tuple(Comparison(arm.name, ALL, arm.name, ENCODER) for arm in arms if ALL in arm.starts)


def lasting(name: str, longer: float) -> str:
    """Return the name of a row whose pre-training is `longer` times as long."""
    return name if longer == 1 else f"{name}, {longer:g} times as long"
