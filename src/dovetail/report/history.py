"""The metrics of a run (`metrics.jsonl`) as series, and verdicts on its features, feature maps and prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from msgspec import UNSET, UnsetType, defstruct, to_builtins

from dovetail.files.schema import read_lines
from dovetail.train.logs import METRICS, Reading
from dovetail.train.monitors import (
    MAX_POSITION,
    MIN_RANK,
    MIN_SPREAD,
    MIN_WITHIN,
    PATIENCE,
    CollapseWatch,
    ContentWatch,
    Health,
)
from dovetail.train.prototypes import MAX_ENTROPY, MIN_USED, PrototypeWatch

MOST = 2.0**63  # largest value that can be plotted; NaN is kept
State = Literal["healthy", "low", "collapsing", "unknown"]


@dataclass(frozen=True)
class Series:
    """One line of a plot: `values` at optimiser steps `steps`."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Verdict:
    """A verdict of the monitors on a tap, the cells of a map or the prototypes of a term, and its explanation."""

    name: str
    state: State
    words: str


@dataclass(frozen=True)
class History:
    """All readings (lines of `metrics.jsonl`) of a run, oldest first."""

    readings: tuple[dict[str, Any], ...]

    @property
    def last(self) -> dict[str, Any]:
        """The newest reading, or an empty dict if there is none."""
        return self.readings[-1] if self.readings else {}

    def number(self, field: str, name: str = "") -> Series:
        """Return the series of a field that is a single number. Readings without it are skipped."""
        points = [(reading["step"], reading[field]) for reading in self.readings if reading.get(field) is not None]
        return Series(name or field, tuple(step for step, _ in points), tuple(float(value) for _, value in points))

    def group(self, field: str) -> list[Series]:
        """Return the series of a field that maps names to numbers, in order of first appearance."""
        names = dict.fromkeys(name for reading in self.readings for name in reading.get(field, {}))
        return [self._named(field, name) for name in names]

    def _named(self, field: str, name: str) -> Series:
        points = [(one["step"], one[field][name]) for one in self.readings if name in one.get(field, {})]
        return Series(name, tuple(step for step, _ in points), tuple(float(value) for _, value in points))

    def verdicts(self, taps: Sequence[str]) -> list[Verdict]:
        """Return the current verdict on each tap."""
        watch = CollapseWatch()
        for reading in self.readings:
            ranks, spreads = reading.get("effective_rank", {}), reading.get("spread", {})
            watch.warnings({tap: Health(ranks[tap], spreads[tap]) for tap in ranks if tap in spreads})
        return [_verdict(tap, self._named("effective_rank", tap), self._named("spread", tap), watch) for tap in taps]

    def content_verdicts(self, total_steps: int) -> list[Verdict]:
        """Return the verdict on the cells of each feature map, for a run of `total_steps`."""
        watch = ContentWatch()
        for reading in self.readings:
            within, position = _both(reading, "within_image_share", "position_share")
            watch.warnings(within, position, share_done=reading["step"] / total_steps)
        positions = {one.name: one for one in self.group("position_share")}
        named = [one for one in self.group("within_image_share") if one.name in positions]
        return [_content_verdict(one, positions[one.name], watch) for one in named]

    def prototype_verdicts(self, total_steps: int) -> list[Verdict]:
        """Return the verdict on the prototypes of each term that has any, for a run of `total_steps`."""
        watch = PrototypeWatch()
        for reading in self.readings:
            used, entropy = _both(reading, "prototypes_used", "teacher_entropy")
            watch.warnings(used, entropy, share_done=reading["step"] / total_steps)
        entropies = {one.name: one for one in self.group("teacher_entropy")}
        named = [one for one in self.group("prototypes_used") if one.name in entropies]
        return [_prototype_verdict(one, entropies[one.name], watch) for one in named]


def _both(reading: dict[str, Any], first: str, second: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return two fields of a reading, restricted to the names that both have."""
    one, other = reading.get(first, {}), reading.get(second, {})
    return {name: one[name] for name in one if name in other}, {name: other[name] for name in other if name in one}


def _verdict(tap: str, ranks: Series, spreads: Series, watch: CollapseWatch) -> Verdict:
    if not ranks.values or not spreads.values:
        return Verdict(tap, "unknown", "unknown: no reading yet, or too few images in a batch")
    numbers = f"effective rank {ranks.values[-1]:.1f}, spread {spreads.values[-1]:.3f}"
    low = watch.low.get(tap, 0)
    bounds = f"bounds {MIN_RANK:g} and {MIN_SPREAD:g}"
    if low >= PATIENCE:
        return Verdict(tap, "collapsing", f"collapsing: {numbers}, below the {bounds} in {low} consecutive readings")
    if low:
        return Verdict(tap, "low", f"low, but not for long: {numbers} ({bounds})")
    return Verdict(tap, "healthy", f"healthy: {numbers}, above the {bounds}")


def _content_verdict(within: Series, position: Series, watch: ContentWatch) -> Verdict:
    name = f"cells of {within.name}"
    numbers = f"within-image share {within.values[-1]:.2f}, position share {position.values[-1]:.2f}"
    alike, placed = watch.alike.get(within.name, 0), watch.placed.get(within.name, 0)
    low = max(alike, placed)
    why = f"all cells of an image are nearly alike (below {MIN_WITHIN:g})"
    if placed > alike:
        why = f"cells mostly encode their position in the crop (above {MAX_POSITION:g})"
    if low >= PATIENCE:
        return Verdict(name, "collapsing", f"little content: {numbers}; {why} in {low} consecutive readings")
    if low:
        return Verdict(name, "low", f"low, but not for long: {numbers} ({why})")
    return Verdict(name, "healthy", f"healthy: {numbers} (bounds {MIN_WITHIN:g} and {MAX_POSITION:g})")


def _prototype_verdict(used: Series, entropy: Series, watch: PrototypeWatch) -> Verdict:
    name = f"prototypes of {used.name}"
    numbers = f"{used.values[-1]:.1f} in use, teacher entropy {entropy.values[-1]:.3f} of the maximum"
    single, even = watch.single.get(used.name, 0), watch.uniform.get(used.name, 0)
    low = max(single, even)
    why = f"fewer than {MIN_USED:g} in use" if single >= even else f"uniform use (entropy above {MAX_ENTROPY:g})"
    if low >= PATIENCE:
        return Verdict(name, "collapsing", f"collapsing: {numbers}; {why} in {low} consecutive readings")
    if low:
        return Verdict(name, "low", f"low, but not for long: {numbers} ({why})")
    return Verdict(name, "healthy", f"healthy: {numbers} (bounds {MIN_USED:g} and {MAX_ENTROPY:g})")


def line_of_log() -> Any:
    """Return the schema of a line: the fields of `Reading`, some of which are missing in older runs."""
    kinds = get_type_hints(Reading)
    needed = {"step": kinds.pop("step"), "loss": kinds.pop("loss")}
    others = [(name, (int | float if kind is int else kind) | UnsetType, UNSET) for name, kind in kinds.items()]
    return defstruct("Line", [*needed.items(), *others])


def plottable(reading: dict[str, Any]) -> bool:
    """Return whether all numbers of a reading can be plotted (including NaN)."""
    numbers = [one for value in reading.values() for one in (value.values() if isinstance(value, dict) else [value])]
    return all(one is None or not abs(one) >= MOST for one in numbers)


def read_history(folder: Path) -> History:
    """Return the readings in a run folder. Incomplete lines, such as one that is being written, are skipped."""
    found = map(to_builtins, read_lines(folder / METRICS, line_of_log()))
    readings = {reading["step"]: reading for reading in found if plottable(reading)}
    return History(tuple(readings[step] for step in sorted(readings)))
