"""Collectives that are no-ops in a single process, so that objectives read the same on one rank and on many."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of ranks; 1 when nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank; 0 when nothing is distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of `value` over all ranks, without gradient."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


@torch.no_grad()
def max_over_ranks(value: Tensor) -> Tensor:
    """Return the elementwise maximum of `value` over all ranks, the same bits on each, without gradient."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def mean_over_rows(total: Tensor, count: Tensor) -> Tensor:
    """Return this rank's part of a mean over rows of which ranks have unequal numbers; zero where nobody has any.

    The mean over ranks of the parts is the sum of all `total`s over the sum of all `count`s, and so is its gradient.

    Args:
        total: Scalar, the sum over this rank's rows, with gradient.
        count: Scalar, their number.
    """
    return total / mean_over_ranks(count.to(total.dtype)).clamp(min=1 / world_size())


@torch.no_grad()
def gather(value: Tensor) -> Tensor:
    """Return [B, ...] of every rank as [ranks * B, ...] in rank order, without gradient. B is equal on all ranks."""
    if world_size() == 1:
        return value
    value = value.contiguous()  # before the parts, which would else have another order in memory than what comes
    parts = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(parts, value)
    return torch.cat(parts)


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.batch = value.shape[0]
        return gather(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Every rank's loss depends on this rank's rows. DDP averages gradients over ranks and each rank's loss
        # is a mean over its own anchors, so summing here gives the gradient of the mean over the whole batch.
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad[rank() * ctx.batch : (rank() + 1) * ctx.batch]


def gather_with_gradient(value: Tensor) -> Tensor:
    """Like `gather`, with the gradient of every rank's loss flowing back to the rank that owns the rows."""
    if world_size() == 1:
        return value
    gathered: Tensor = _GatherWithGradient.apply(value)
    return gathered
