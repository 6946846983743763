"""Collective operations that do nothing in a single process, so objectives need no special case for one rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of ranks, which is 1 without distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process, which is 0 without distributed training."""
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
    """Return the elementwise maximum of `value` over all ranks, bit-equal on all ranks, without gradient."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def mean_over_rows(total: Tensor, count: Tensor) -> Tensor:
    """Return this rank's contribution to a mean over rows if ranks have different numbers of rows.

    The mean of the contributions over ranks is the sum of all `total` divided by the sum of all `count`, and so is its
    gradient. The result is zero if no rank has any rows.

    Args:
        total: Sum over the rows of this rank, a scalar with gradient.
        count: Number of rows of this rank, a scalar.
    """
    return total / mean_over_ranks(count.to(total.dtype)).clamp(min=1 / world_size())


@torch.no_grad()
def gather(value: Tensor) -> Tensor:
    """Return [B, ...] of every rank as [ranks * B, ...] in rank order, without gradient. B is equal on all ranks."""
    if world_size() == 1:
        return value
    value = value.contiguous()  # first, so that the parts have the same memory layout as the received data
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
        # The loss of every rank depends on the rows of this rank. DDP averages gradients over ranks, and the loss of
        # each rank is a mean over its anchors, so summing here gives the gradient of the mean over the whole batch.
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad[rank() * ctx.batch : (rank() + 1) * ctx.batch]


def gather_with_gradient(value: Tensor) -> Tensor:
    """Like `gather`, but gradients of the losses of all ranks flow back to the rank that owns the rows."""
    if world_size() == 1:
        return value
    gathered: Tensor = _GatherWithGradient.apply(value)
    return gathered
