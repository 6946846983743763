"""What a run watches: effective rank and spread of its taps, collapse, non-finite numbers.

Shapes: N samples, C channels of a tap, H x W cells, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dovetail.errors import DovetailError
from dovetail.objectives.objective import Loss

MIN_RANK = 1.5
MIN_SPREAD = 0.01
MIN_SAMPLES = 8  # fewer say nothing about rank
PATIENCE = 3


class Health(NamedTuple):
    """Effective rank and spread of a sample's features."""

    rank: float
    spread: float


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    """Return exp of the entropy of the centred features' singular values over their sum: a scalar in [1, min(N, C)].

    Roy & Vetterli 2007, "The effective rank", definition 1; read as a sign of collapse by RankMe (arXiv 2210.02885).

    Args:
        features: [N, C] float.
    """
    centred = features.float() - features.float().mean(dim=0)
    singular = torch.linalg.svdvals(centred)
    share = singular / singular.sum().clamp_min(torch.finfo(singular.dtype).tiny)
    return torch.exp(-torch.xlogy(share, share).sum())


@torch.no_grad()
def spread(features: Tensor) -> Tensor:
    """Return sqrt(C) times the mean over dimensions of the standard deviation of unit-length features: a scalar.

    About 1 where directions are spread evenly, 0 where all samples point one way (SimSiam, arXiv 2011.10566, figure 2).

    Args:
        features: [N, C] float.
    """
    unit = nn.functional.normalize(features.float(), dim=1)
    return unit.std(dim=0, correction=0).mean() * math.sqrt(features.shape[1])


def pooled(tap: Tensor) -> Tensor:
    """Return a map [N, C, H, W] or tokens [N, T, C] averaged over positions, or a vector as it is: [N, C]."""
    if tap.dim() == 4:
        return tap.mean(dim=(2, 3))
    return tap.mean(dim=1) if tap.dim() == 3 else tap


class TapWatch:
    """Takes the taps that a network gives during a forward pass: the very features that the loss sees, at no cost.

    A sample is the first view of a pass, at most `most` images.
    """

    def __init__(self, most: int = 128) -> None:
        self.most = most
        self._taken: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        """Take the first output of each tap from the forward passes within."""
        self._taken = {}
        handle = network.register_forward_hook(self._take)
        try:
            yield
        finally:
            handle.remove()

    def _take(self, network: nn.Module, inputs: Any, output: dict[str, Tensor]) -> None:
        for name, tap in output.items():
            if name not in self._taken:
                self._taken[name] = pooled(tap.detach()[: self.most].float())

    def read(self) -> dict[str, Health]:
        """Return the health of every tap taken; waits for the device."""
        return {
            name: Health(float(effective_rank(features)), float(spread(features)))
            for name, features in self._taken.items()
            if features.shape[0] >= MIN_SAMPLES and bool(torch.isfinite(features).all())
        }


@dataclass
class CollapseWatch:
    """Says in words when a tap's features collapse: rank or spread below its bound for `PATIENCE` readings on end."""

    low: dict[str, int] = field(default_factory=dict)

    def warnings(self, readings: dict[str, Health]) -> list[str]:
        """Count these readings and return one sentence per tap that has just been low for long enough."""
        sentences = []
        for tap, health in readings.items():
            low = health.rank < MIN_RANK or health.spread < MIN_SPREAD
            self.low[tap] = self.low.get(tap, 0) + 1 if low else 0
            if self.low[tap] == PATIENCE:
                sentences.append(
                    f"The features of {tap} are collapsing: effective rank {health.rank:.1f} (below {MIN_RANK:g}) or "
                    f"spread {health.spread:.4f} (below {MIN_SPREAD:g}) in {PATIENCE} readings on end. What usually "
                    "helps: a lower learning rate, a longer warm-up, a larger batch, a sharper teacher temperature, "
                    "or a teacher momentum nearer to 1."
                )
        return sentences

    @property
    def collapsed(self) -> list[str]:
        """The taps that are low at the last reading and have been for long enough."""
        return [tap for tap, count in self.low.items() if count >= PATIENCE]


@dataclass(frozen=True)
class Glance:
    """The numbers of one step that must be finite, on their way from the device."""

    names: list[str]
    values: Tensor
    step: int
    lr: float
    arrived: torch.cuda.Event | None


class FiniteGuard:
    """Stops a run at a loss or gradient that is no number.

    On a processor before the weights take the step. On a GPU the numbers are copied without waiting and looked at one
    step later, so the weights in memory have taken it, but no checkpoint has.
    """

    def __init__(self) -> None:
        self._waiting: Glance | None = None

    def watch(self, loss: Loss, grad_norm: Tensor, *, step: int, lr: float) -> None:
        """Hand in one step's numbers; raises for this one on a processor, for the one before on a GPU."""
        named = {"the loss": loss.total.detach(), "the gradient": grad_norm, **loss.parts}
        values = torch.stack([value.float().reshape(()) for value in named.values()])
        self.settle()
        arrived = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._waiting = Glance(list(named), values, step, lr, arrived)
        if arrived is None:
            self.settle()

    def settle(self) -> None:
        """Look at the numbers handed in last.

        Raises:
            DovetailError: Naming what is not finite, the step and the learning rate.
        """
        glance, self._waiting = self._waiting, None
        if glance is None:
            return
        if glance.arrived is not None:
            glance.arrived.synchronize()
        finite = torch.isfinite(glance.values)
        if bool(finite.all()):
            return
        wrong = [name for name, good in zip(glance.names, finite.tolist(), strict=True) if not good]
        # The terms say more than their sum.
        named = [name for name in wrong if name not in ("the loss", "the gradient")] or wrong
        raise DovetailError(
            f"Not a finite number at step {glance.step}: {', '.join(named)} (learning rate {glance.lr:.3g}); "
            "try a lower learning rate or a longer warm-up, or --precision 32-true, and go on with --resume."
        )
