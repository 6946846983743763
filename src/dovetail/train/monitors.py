"""Monitors of a run: effective rank and spread of taps, content of maps, collapse, and non-finite values.

Shapes: N samples, C channels of a tap, H x W cells, T tokens.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dovetail.distributed import mean_over_ranks
from dovetail.errors import RunError
from dovetail.networks.network import POINTS, Network
from dovetail.objectives.objective import Loss
from dovetail.train.content import MapContent, sampled_content

MIN_RANK = 1.5
MIN_SPREAD = 0.01
MIN_SAMPLES = 8  # fewer samples do not give a useful rank
# Untrained CNNs on views of 64 to 224 px have within-image shares of 0.67 to 0.96 and position shares of 0.02 to 0.24.
# CNNs with ImageNet weights have 0.5 and 0.04 on their deepest map. Values beyond these limits come from training.
MIN_WITHIN = 0.1
MAX_POSITION = 0.3
WARMING_UP = 0.1  # fraction of the run in which maps may show little but padding, and prototypes may be alike
PATIENCE = 3
RECORD = "nonfinite.jsonl"
SHOWN_IMAGES = 4

log = logging.getLogger(__name__)


class Health(NamedTuple):
    """Effective rank and spread of a sample's features."""

    rank: float
    spread: float


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    """Return the effective rank: exp of the entropy of the normalised singular values of the centred features.

    A scalar in [1, min(N, C)]. Roy & Vetterli 2007, "The effective rank", definition 1; RankMe (arXiv 2210.02885) uses
    it to detect collapse.

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

    About 1 if directions are spread evenly, 0 if all samples point in one direction (SimSiam, arXiv 2011.10566, figure
    2).

    Args:
        features: [N, C] float.
    """
    unit = nn.functional.normalize(features.float(), dim=1)
    return unit.std(dim=0, correction=0).mean() * math.sqrt(features.shape[1])


def pooled(tap: Tensor) -> Tensor:
    """Average a map [N, C, H, W] or tokens [N, T, C] over positions; a vector [N, C] is unchanged."""
    if tap.dim() == 4:
        return tap.mean(dim=(2, 3))
    return tap.mean(dim=1) if tap.dim() == 3 else tap


class TapWatch:
    """Records the taps of a network during a forward pass, the same features as in the loss, at no extra cost.

    A sample is the first view of a pass, with at most `most` images.
    """

    def __init__(self, most: int = 128) -> None:
        self.most = most
        self._taken: dict[str, Tensor] = {}
        self._content: dict[str, MapContent] = {}

    @contextmanager
    def watching(self, network: Network) -> Iterator[None]:
        """Record the first output of each tap in this context."""
        self._taken, self._content = {}, {}
        handle = network.register_forward_hook(self._take)
        network.watched = True
        try:
            yield
        finally:
            handle.remove()
            network.watched = False

    def _take(self, network: nn.Module, inputs: Any, output: dict[str, Tensor]) -> None:
        for name, tap in output.items():
            if name not in self._taken and not name.endswith(POINTS):  # the whole map is recorded too
                self._taken[name] = pooled(tap.detach()[: self.most].float())
                content = sampled_content(tap[: self.most], fewest=MIN_SAMPLES)
                if content is not None:
                    self._content[name] = content

    def read(self) -> dict[str, Health]:
        """Return the health of every recorded tap; waits for the device."""
        return {
            name: Health(float(effective_rank(features)), float(spread(features)))
            for name, features in self._taken.items()
            if features.shape[0] >= MIN_SAMPLES and bool(torch.isfinite(features).all())
        }

    def content(self) -> dict[str, MapContent]:
        """Return the content of every recorded map as plain numbers; waits for the device."""
        found = {name: MapContent(float(one.within), float(one.position)) for name, one in self._content.items()}
        return {name: one for name, one in found.items() if all(map(math.isfinite, one))}


@dataclass
class CollapseWatch:
    """Warns when the features of a tap collapse: rank or spread below its limit for `PATIENCE` readings in a row."""

    low: dict[str, int] = field(default_factory=dict)

    def warnings(self, readings: dict[str, Health]) -> list[str]:
        """Add readings and return one warning per tap that has just been low for long enough."""
        sentences = []
        for tap, health in readings.items():
            low = health.rank < MIN_RANK or health.spread < MIN_SPREAD
            self.low[tap] = self.low.get(tap, 0) + 1 if low else 0
            if self.low[tap] == PATIENCE:
                sentences.append(
                    f"The features of {tap} are collapsing: effective rank {health.rank:.1f} (below {MIN_RANK:g}) or "
                    f"spread {health.spread:.4f} (below {MIN_SPREAD:g}) for {PATIENCE} readings in a row. Try a lower "
                    "learning rate, a longer warm-up, a larger batch, a lower teacher temperature, or a teacher "
                    "momentum closer to 1."
                )
        return sentences

    @property
    def collapsed(self) -> list[str]:
        """The taps that are low in the last reading and have been for long enough."""
        return [tap for tap, count in self.low.items() if count >= PATIENCE]


@dataclass
class ContentWatch:
    """Warns when the cells of a map are alike or mostly encode position for `PATIENCE` readings in a row."""

    alike: dict[str, int] = field(default_factory=dict)
    placed: dict[str, int] = field(default_factory=dict)

    def warnings(self, within: Mapping[str, float], position: Mapping[str, float], *, share_done: float) -> list[str]:
        """Add a reading and return one warning per map that has just been out of bounds for long enough.

        Args:
            within: Within-image share of each map.
            position: Position share of each map.
            share_done: Finished fraction of the run, in [0, 1].
        """
        sentences = []
        for tap in within:
            counts = share_done >= WARMING_UP
            self.alike[tap] = self.alike.get(tap, 0) + 1 if counts and within[tap] < MIN_WITHIN else 0
            self.placed[tap] = self.placed.get(tap, 0) + 1 if counts and position[tap] > MAX_POSITION else 0
            if self.alike[tap] == PATIENCE:
                sentences.append(
                    f"The cells of {tap} are nearly alike within each image: only {within[tap]:.1%} of the variance is "
                    f"between cells of one image (below {MIN_WITHIN:.0%}) for {PATIENCE} readings in a row. Try larger "
                    "views, which have more cells on this map, a loss that compares cells by their position (pixpro), "
                    "or a lower learning rate."
                )
            if self.placed[tap] == PATIENCE:
                sentences.append(
                    f"The cells of {tap} tell where they lie in the crop: position explains "
                    f"{position[tap]:.0%} of the variance within images (above {MAX_POSITION:.0%}) for {PATIENCE} "
                    "readings in a row. Try larger views, which have more cells on this map, a loss that compares "
                    "cells by their position (pixpro), or a lower learning rate."
                )
        return sentences


@dataclass(frozen=True)
class Glance:
    """Values of one step that must be finite, copied from the device."""

    names: list[str]
    values: Tensor
    step: int
    lr: float
    images: Sequence[str] = ()
    arrived: torch.cuda.Event | None = None

    def wrong(self) -> list[str]:
        """Return the names of values that are not finite; waits for the device."""
        if self.arrived is not None:
            self.arrived.synchronize()
        finite = torch.isfinite(self.values).tolist()
        wrong = [name for name, good in zip(self.names, finite, strict=True) if not good]
        # The terms are more informative than their sum.
        return [name for name in wrong if name not in ("the loss", "the gradient")] or wrong


def glance_at(loss: Loss, grad_norm: Tensor, *, step: int, lr: float, images: Sequence[str] = ()) -> Glance:
    """Return the values of a step, still on the device."""
    named = {"the loss": loss.total.detach(), "the gradient": grad_norm, **loss.parts}
    values = torch.stack([value.float().reshape(()) for value in named.values()])
    return Glance(list(named), values, step, lr, images)


class FiniteGuard:
    """Stops a run at a loss or gradient that is not finite, or skips such steps.

    On a CPU, the check happens before the weights are updated. On a GPU, values are copied without waiting and checked
    one step later: the weights in memory have been updated by then, but no checkpoint has. If steps may be skipped, a
    GPU waits for the values too.

    Args:
        record: File for each such step with all its images, one JSON line per step; None writes nothing.
        may_skip: Maximum number of skipped steps in the run.

    Attributes:
        skipped: Number of steps skipped so far.
    """

    def __init__(self, record: Path | None = None, *, may_skip: int = 0) -> None:
        self.record = record
        self.may_skip = may_skip
        self.skipped = 0
        self._waiting: Glance | None = None

    def lets_pass(self, loss: Loss, grad_norm: Tensor, *, step: int, lr: float, images: Sequence[str] = ()) -> bool:
        """Return whether to take the step; False skips it, on all ranks alike.

        Raises:
            DovetailError: As `settle`, if no more steps may be skipped.
        """
        if self.may_skip == 0:
            self.watch(loss, grad_norm, step=step, lr=lr, images=images)
            return True
        glance = glance_at(loss, grad_norm, step=step, lr=lr, images=images)
        wrong = glance.wrong()
        if not float(mean_over_ranks(torch.tensor(float(bool(wrong)), device=glance.values.device))):
            return True
        wrong = wrong or ["a value of another process"]
        if self.skipped >= self.may_skip:
            raise self.error(glance, wrong)
        self.skipped += 1
        self.write(glance, wrong)
        log.warning(
            "Step %d is skipped because of non-finite values: %s (%s); %d of at most %d such steps.",
            *(glance.step, ", ".join(wrong), some_images(glance.images), self.skipped, self.may_skip),
        )
        return False

    def watch(self, loss: Loss, grad_norm: Tensor, *, step: int, lr: float, images: Sequence[str] = ()) -> None:
        """Check the values of a step; raises for this step on a CPU, for the previous step on a GPU."""
        glance = glance_at(loss, grad_norm, step=step, lr=lr, images=images)
        values = glance.values
        self.settle()
        arrived = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._waiting = replace(glance, values=values, arrived=arrived)
        if arrived is None:
            self.settle()

    def settle(self) -> None:
        """Check the last values.

        Raises:
            DovetailError: With the values that are not finite, the step, the learning rate and the images.
        """
        glance, self._waiting = self._waiting, None
        wrong = [] if glance is None else glance.wrong()
        if glance is not None and wrong:
            raise self.error(glance, wrong)

    def error(self, glance: Glance, wrong: Sequence[str]) -> RunError:
        """Record the step and return the error message that ends the run."""
        self.write(glance, wrong)
        where = some_images(glance.images) if glance.images else ""
        after = f", after {self.skipped} skipped steps" if self.skipped else ""
        return RunError(
            f"Not a finite number at step {glance.step}: {', '.join(wrong)} (learning rate {glance.lr:.3g}){after}"
            f"{', with ' + where if where else ''}; the last checkpoint is kept: try a lower learning rate, a longer "
            "warm-up or --precision 32-true, or skip such steps with --resume --skip-nonfinite-steps 10."
        )

    def write(self, glance: Glance, wrong: Sequence[str]) -> None:
        """Append the step and all its images to the record."""
        if self.record is None:
            return
        line = {"step": glance.step, "lr": glance.lr, "not_finite": list(wrong), "images": list(glance.images)}
        try:
            with self.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:  # the error message matters more
            log.warning("The images of step %d could not be written to %s: %s", glance.step, self.record, error)


def some_images(images: Sequence[str]) -> str:
    """Return "the images 'a.jpg', 'b.jpg' and 30 more", with control characters escaped."""
    shown = ", ".join(map(ascii, images[:SHOWN_IMAGES]))
    more = len(images) - SHOWN_IMAGES
    return f"the images {shown}" + (f" and {more} more (all are in {RECORD})" if more > 0 else "")
