"""Constants of one method: operations, activations and traffic of one training step, counted and not timed.

    python -m benchmarks.scale.measure METHOD MODEL BATCH      prints one line of JSON

Counting does not depend on the machine or on what else it does. Operations are those of matrix products and
convolutions, as torch counts them, two for each multiplication and addition. Activations are what autograd keeps for
the backward pass, in float32. Traffic is what the objectives hand to collectives on two processes, of which this
process is the first: the other one is played by copies.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from dovetail.networks.build import build_network
from dovetail.recipes.table import build
from dovetail.schedules import Moment
from dovetail.train.learner import Learner
from dovetail.views.plan import ViewPlan
from dovetail.views.points import with_points
from dovetail.views.view import View

RANKS = 2
START = Moment(0, 100, 10)


@dataclass(frozen=True)
class Constants:
    """What one step of `batch` images on one device does.

    Attributes:
        flops: Operations, forward and backward, student and teacher.
        activation_bytes: Kept for the backward pass.
        trained: Parameters with a gradient.
        followed: Parameters of the teacher.
        state_bytes: Buffers (queues, centres, statistics) of all.
        gathered_bytes: Handed to all-gathers by this process.
        reduced_bytes: Handed to all-reduces, without DDP's of the gradients.
        returned_bytes: Of the gradients that go back to all processes' gathered rows, for each process.
        norms: Passes through BatchNorm layers in the student. On several devices each talks twice, in so few bytes that
            only the number of messages counts.
        teacher_norms: The same in the teacher, each of which talks once.
    """

    batch: int
    flops: int
    activation_bytes: int
    trained: int
    followed: int
    state_bytes: int
    gathered_bytes: int
    reduced_bytes: int
    returned_bytes: int
    norms: int
    teacher_norms: int


class Traffic:
    """Plays two processes to the objectives, and adds up what is handed to collectives."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()

    def all_gather(self, parts: list[Tensor], value: Tensor) -> None:
        """Give copies as the parts of all."""
        self.bytes["gathered"] += value.nbytes
        for part in parts:
            part.copy_(value)

    def all_reduce(self, value: Tensor, op: Any = None) -> None:
        """Give the sum of equal values, or the largest."""
        # Only the gradient of gathered rows is reduced in a backward pass.
        returned = sys._getframe(1).f_code.co_name == "backward"
        self.bytes["returned" if returned else "reduced"] += value.nbytes // (RANKS if returned else 1)
        if op != dist.ReduceOp.MAX:
            value.mul_(RANKS)

    def broadcast(self, value: Tensor, src: int) -> None:
        """Leave the value, which is the first process's."""
        self.bytes["reduced"] += value.nbytes

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count within."""
        with (
            mock.patch.object(dist, "is_initialized", return_value=True),
            mock.patch.object(dist, "get_world_size", return_value=RANKS),
            mock.patch.object(dist, "get_rank", return_value=0),
            mock.patch.object(dist, "all_gather", self.all_gather),
            mock.patch.object(dist, "all_reduce", self.all_reduce),
            mock.patch.object(dist, "broadcast", self.broadcast),
        ):
            yield


@contextmanager
def kept_for_backward(learner: nn.Module, found: dict[int, int]) -> Iterator[None]:
    """Note the bytes of every storage that autograd keeps within, but for parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in learner.parameters()}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield


def quarters(sides: tuple[int, int], batch: int) -> Tensor:
    """Return [B, H, W] int32 with one segment in each quarter of a view."""
    blocks = torch.arange(4.0).reshape(1, 1, 2, 2).expand(batch, 1, 2, 2)
    return torch.nn.functional.interpolate(blocks, sides)[:, 0].int()


def random_views(plan: ViewPlan, batch: int) -> list[View]:
    """Return views of noise that fit a plan, overlapping as crops do."""
    views = []
    for spec in plan.views:
        corner = torch.rand(batch, 2) * 0.3
        extent = 0.5 + torch.rand(batch, 2) * 0.2
        is_global = spec.role == "global"
        mask = queries = query_box = None
        if plan.masks is not None and is_global:
            rows, columns = (side // plan.masks.patch_px for side in spec.sides)
            mask = torch.rand(batch, rows, columns) < 0.3
        if plan.queries is not None and is_global:
            size = plan.queries.size_px
            queries = torch.randn(batch, plan.queries.count, 3, size, size)
            place = torch.rand(batch, plan.queries.count, 2) * 0.5
            query_box = torch.cat([place, place + 0.3], dim=2)
        views.append(
            View(
                pixels=torch.randn(batch, 3, *spec.sides),
                box=torch.cat([corner, corner + extent], dim=1),
                flipped=torch.rand(batch) < 0.5,
                source_px=torch.full((batch, 2), 500.0),
                role=spec.role,
                mask=mask,
                queries=queries,
                query_box=query_box,
                segments=None if plan.segments is None else quarters(spec.sides, batch),
                picks=None if plan.segments is None else torch.rand(batch, plan.segments.count),
            )
        )
    return with_points(views, plan.points, np.random.default_rng(0))


def measure(method: str, model: str, batch: int, **options: Any) -> Constants:
    """Return the constants of one step of `batch` images."""
    torch.manual_seed(0)
    size = options.get("image_size", 224)
    network = build_network(model, image_size=size)
    # On several devices BatchNorm is joint, and images need not be shuffled among them.
    learner = Learner(replace(build(method, network.taps, options), shuffle_batch_norm=False), network)
    views = random_views(learner.recipe.views, batch)
    passes: Counter[str] = Counter()
    for name, module in learner.named_modules():
        if isinstance(module, _BatchNorm):
            side = "teacher" if name.startswith("teacher.") else "student"
            module.register_forward_pre_hook(lambda *_, side=side: passes.update([side]))
    traffic, kept = Traffic(), dict[int, int]()
    with FlopCounterMode(display=False) as flops, traffic.watched():
        with kept_for_backward(learner, kept):
            loss = learner(views, START).total
        before_backward = Counter(passes)  # heads may be computed again in the backward pass
        loss.backward()
        learner.update()
    return Constants(
        batch=batch,
        flops=flops.get_total_flops(),
        activation_bytes=sum(kept.values()),
        trained=sum(value.numel() for value in learner.parameters() if value.requires_grad),
        followed=0 if learner.teacher is None else sum(value.numel() for value in learner.teacher.parameters()),
        state_bytes=sum(value.nbytes for value in learner.buffers()),
        gathered_bytes=traffic.bytes["gathered"],
        reduced_bytes=traffic.bytes["reduced"],
        returned_bytes=traffic.bytes["returned"],
        norms=before_backward["student"],
        teacher_norms=before_backward["teacher"],
    )


def main(arguments: list[str]) -> None:
    """Print the constants of one method."""
    method, model, batch = arguments
    print(json.dumps(asdict(measure(method, model, int(batch)))))


if __name__ == "__main__":
    main(sys.argv[1:])
