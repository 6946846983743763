"""Sharded tensors (FSDP2's DTensors): local parts, and operations over all parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from dovetail.distributed import world_size


def own_part(tensor: Tensor) -> Tensor:
    """Return the local part of a sharded tensor, sharing its memory; any other tensor is returned unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def laid_out_as(like: Tensor, value: Tensor) -> Tensor:
    """Return a tensor sharded and with the strides of `like` if the shapes agree, otherwise unchanged.

    Fused optimisers iterate over memory, so moments must have the same memory order as their weight. Every process must
    have the whole `value`.
    """
    if isinstance(value, DTensor) or value.shape != like.shape:
        return value
    if isinstance(like, DTensor):
        return distribute_tensor(value.contiguous(), like.device_mesh, like.placements, src_data_rank=None)
    if value.stride() == like.stride():
        return value
    return torch.empty_strided(value.shape, like.stride(), dtype=value.dtype, device=value.device).copy_(value)


def norms_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of each tensor, [len(tensors)]; norms of sharded tensors take one message."""
    if not tensors:
        return torch.zeros(0)
    norms = torch.stack(torch._foreach_norm([own_part(tensor) for tensor in tensors]))
    cut_ones = [isinstance(tensor, DTensor) for tensor in tensors]
    if not any(cut_ones):
        return norms
    mask = torch.tensor(cut_ones, device=norms.device)
    squares = norms.square() * mask
    dist.all_reduce(squares)
    return torch.where(mask, squares.sqrt(), norms)


def average_whole_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Average the gradients of unsharded weights over processes; those of sharded weights are already averaged."""
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()
