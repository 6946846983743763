"""Tensors of which each process keeps a part (FSDP2's DTensors): the part, and what takes all parts together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from dovetail.distributed import world_size


def own_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a cut tensor, sharing its memory, and any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def laid_out_as(like: Tensor, value: Tensor) -> Tensor:
    """Return a whole tensor cut and with strides as `like` has them, if it is of the same shape, else as it is.

    Fused optimisers run over memory: moments that lie in another order than their weight would move the wrong numbers.
    Every process has to have all of `value`.
    """
    if isinstance(value, DTensor) or value.shape != like.shape:
        return value
    if isinstance(like, DTensor):
        return distribute_tensor(value.contiguous(), like.device_mesh, like.placements, src_data_rank=None)
    if value.stride() == like.stride():
        return value
    return torch.empty_strided(value.shape, like.stride(), dtype=value.dtype, device=value.device).copy_(value)


def norms_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of each tensor, [len(tensors)], of cut ones over all processes, in one message."""
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
    """Average over processes the gradients of weights that are not cut; those of the others are already."""
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()
