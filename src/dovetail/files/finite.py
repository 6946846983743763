"""Checks weights for NaN and infinite values, before they are written and after they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dovetail.errors import WeightsError


@torch.no_grad()
def first_not_finite(tensors: Mapping[str, Any]) -> str | None:
    """Return the name of the first tensor with NaN or infinite values, or None.

    This synchronises with the device once. Of a sharded tensor, only this process's shard is checked. Values other than
    floating-point tensors are skipped, and so are attention masks, which consist of zeros and minus infinities.
    """
    found = {name: local(value) for name, value in tensors.items() if isinstance(value, Tensor)}
    found = {name: value for name, value in found.items() if value.is_floating_point() and value.numel()}
    if not found:
        return None
    flags = [all_finite(value) for value in found.values()]
    here = torch.stack([flag.to(flags[0].device, non_blocking=True) for flag in flags]).tolist()
    return next(
        (name for (name, value), fine in zip(found.items(), here, strict=True) if not (fine or is_mask(value))), None
    )


def all_finite(value: Tensor) -> Tensor:
    """Return whether all values are finite, as a scalar on the device: whether the least and the greatest are.

    Both are NaN if any value is, and zero times NaN or infinity is NaN, which equals nothing. Finding them takes a
    thirtieth of the time of looking at the values one by one, which is left for types of 8 bits.
    """
    if value.dtype.itemsize == 1:
        return torch.isfinite(value).all()
    least, greatest = torch.aminmax(value)
    return least * 0 == greatest * 0


def local(value: Tensor) -> Tensor:
    """Return a tensor, or this process's shard of it."""
    part = value.to_local() if hasattr(value, "to_local") else value
    return part.detach() if isinstance(part, Tensor) else value.detach()


def is_mask(value: Tensor) -> bool:
    """Return whether a tensor of two or more dimensions consists of zeros and minus infinities."""
    return value.ndim > 1 and bool(((value == 0) | (value == -torch.inf)).all())


LARGEST_EXPANDED = 1 << 28
"""Largest number of elements of a tensor that repeats its storage: a tiny file could claim a terabyte this way."""


def not_dense(tensors: Mapping[str, Any]) -> str | None:
    """Return the name of the first tensor that is sparse, or expanded to more than `LARGEST_EXPANDED` elements."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            continue
        part = local(value)
        if part.layout != torch.strided:
            return name
        if part.numel() > LARGEST_EXPANDED and part.untyped_storage().nbytes() < part.numel() * part.element_size():
            return name
    return None


def check_finite(tensors: Mapping[str, Any], what: str, advice: str) -> None:
    """Raise `WeightsError` if a tensor is not dense, or has NaN or infinite values. The message names the tensor.

    Args:
        tensors: Tensors by name.
        what: What contains the tensors: the beginning of the message.
        advice: What to do: the end of the message.
    """
    odd = not_dense(tensors)
    if odd is not None:
        raise WeightsError(
            f"{what} contains a sparse or expanded tensor ({odd!r}) where a dense one is expected; {advice}."
        )
    name = first_not_finite(tensors)
    if name is not None:
        raise WeightsError(f"{what} contains NaN or infinite values, first in {name!r}; {advice}.")
