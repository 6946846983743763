"""Records the curve of a trial: its loss, and occasionally its score on some test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dovetail.downstream.table.ledger import Curve

POINTS = 100
GLANCES = 4
FEWEST_STEPS = 20  # shorter trials have no curve of scores


class Following:
    """Collects the curve of a trial.

    The score is for display only: nothing is selected by it, and it does not change the training.
    """

    def __init__(self, steps: int, glance: Callable[[], float | None] | None) -> None:
        """`glance` evaluates the current model. None records no scores."""
        self.glance = glance
        self.due = {steps * part // GLANCES for part in range(1, GLANCES + 1)} if steps >= FEWEST_STEPS else set()
        self.losses: list[float] = []
        self.validation: list[tuple[int, float]] = []

    def stepped(self, step: int, loss: float) -> None:
        """Record a step, numbered from 0."""
        self.losses.append(loss)
        if self.glance is not None and step + 1 in self.due:
            score = self.glance()
            if score is not None:
                self.validation.append((step + 1, score))

    def curve(self) -> Curve:
        """Return the collected curve."""
        return Curve(thinned(self.losses), tuple(self.validation))


def thinned(losses: Sequence[float]) -> tuple[tuple[int, float], ...]:
    """Return at most `POINTS` points (step, mean loss since the previous point)."""
    every = -(-len(losses) // POINTS) or 1
    parts = [losses[start : start + every] for start in range(0, len(losses), every)]
    ends = [min((number + 1) * every, len(losses)) for number in range(len(parts))]
    return tuple((end, float(f"{sum(part) / len(part):.5g}")) for end, part in zip(ends, parts, strict=True))
