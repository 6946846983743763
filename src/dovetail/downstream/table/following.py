"""What is followed along a trial: its loss, and now and then its score on some test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dovetail.downstream.table.ledger import Curve

POINTS = 100
GLANCES = 4
FEWEST_STEPS = 20  # of a shorter trial the end says all


class Following:
    """Collects the curve of a trial.

    The score is for looking at alone: nothing is chosen by it, and training goes on in the same bits.
    """

    def __init__(self, steps: int, glance: Callable[[], float | None] | None) -> None:
        """`glance` measures the model as it stands; None where no score is asked for."""
        self.glance = glance
        self.due = {steps * part // GLANCES for part in range(1, GLANCES + 1)} if steps >= FEWEST_STEPS else set()
        self.losses: list[float] = []
        self.validation: list[tuple[int, float]] = []

    def stepped(self, step: int, loss: float) -> None:
        """Note a step, numbered from 0."""
        self.losses.append(loss)
        if self.glance is not None and step + 1 in self.due:
            score = self.glance()
            if score is not None:
                self.validation.append((step + 1, score))

    def curve(self) -> Curve:
        """Return what was collected."""
        return Curve(thinned(self.losses), tuple(self.validation))


def thinned(losses: Sequence[float]) -> tuple[tuple[int, float], ...]:
    """Return at most `POINTS` points of (step, mean loss since the point before)."""
    every = -(-len(losses) // POINTS) or 1
    parts = [losses[start : start + every] for start in range(0, len(losses), every)]
    ends = [min((number + 1) * every, len(losses)) for number in range(len(parts))]
    return tuple((end, float(f"{sum(part) / len(part):.5g}")) for end, part in zip(ends, parts, strict=True))
