"""Whether weights are numbers: asked before they are written, and after they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dovetail.errors import WeightsError


@torch.no_grad()
def first_not_finite(tensors: Mapping[str, Any]) -> str | None:
    """Return the name of the first tensor that holds NaN or an infinity; None where there is none.

    Waits for the device once. Of a tensor that is cut over processes this process's part counts. Values that are no
    floating-point tensors are left out, and so are masks for attention's logits: zeros and minus infinities.
    """
    found = {name: local(value) for name, value in tensors.items() if isinstance(value, Tensor)}
    found = {name: value for name, value in found.items() if value.is_floating_point() and value.numel()}
    if not found:
        return None
    flags = [torch.isfinite(value).all() for value in found.values()]
    here = torch.stack([flag.to(flags[0].device, non_blocking=True) for flag in flags]).tolist()
    return next(
        (name for (name, value), fine in zip(found.items(), here, strict=True) if not (fine or is_mask(value))), None
    )


def local(value: Tensor) -> Tensor:
    """Return a tensor, or this process's part of it."""
    part = value.to_local() if hasattr(value, "to_local") else value
    return part.detach() if isinstance(part, Tensor) else value.detach()


def is_mask(value: Tensor) -> bool:
    """Whether a tensor is a matrix, or more, of zeros and minus infinities alone."""
    return value.ndim > 1 and bool(((value == 0) | (value == -torch.inf)).all())


LARGEST_EXPANDED = 1 << 28
"""Elements of a tensor that repeats its storage. A file of some bytes can claim a terabyte this way."""


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
    """Raise `WeightsError` for values that are not finite, or no dense tensors, naming the first tensor.

    Args:
        tensors: By name.
        what: That holds them, as the sentence begins.
        advice: What to do, as the sentence ends.
    """
    odd = not_dense(tensors)
    if odd is not None:
        raise WeightsError(
            f"{what} holds a sparse or expanded tensor where a dense one is expected, {odd!r}; {advice}."
        )
    name = first_not_finite(tensors)
    if name is not None:
        raise WeightsError(f"{what} holds values that are not finite numbers, first in {name!r}; {advice}.")
