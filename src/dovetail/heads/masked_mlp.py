"""MLPs over rows of which only some are valid, with shapes that do not depend on their number.

Selecting rows by a mask makes the host wait for the GPU. Instead, all rows are processed, and BatchNorm statistics only
cover valid rows. The outputs of the other rows are meaningless.

Shapes: N rows of this process, C channels, ... positions; R processes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dovetail.distributed import gather_with_gradient, world_size
from dovetail.heads.base import at_least_float32


def on_host(value: Tensor) -> bool:
    """Whether the host can read a tensor's values without waiting for a device."""
    return value.device.type == "cpu"


def through_rows(layers: nn.Sequential, rows: Tensor, counts: Tensor, enough: Tensor) -> Tensor:
    """Apply an MLP of `mlp` to the rows [N, C] that are valid by `counts` [N].

    Args:
        layers: MLP from `mlp`; training needs at least two rows, over all processes if its BatchNorm is synchronised.
        rows: [N, C] float.
        counts: [N] bool, valid rows.
        enough: Scalar bool; False does not update running statistics.
    """
    for layer in layers:
        assert isinstance(layer, nn.Sequential)  # a `Layer`
        for part in layer:
            if isinstance(part, _BatchNorm) and part.training:
                rows = normalised_rows(part, rows, counts, enough)
            else:
                rows = part(rows)
    return rows


def normalised_rows(norm: _BatchNorm, rows: Tensor, counts: Tensor, enough: Tensor | None = None) -> Tensor:
    """Apply BatchNorm in training mode to rows [N, C] with the statistics of valid rows."""
    values = at_least_float32(rows)
    own = isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))  # not synchronised
    everywhere = world_size() > 1 and not own
    mean, variance, count = statistics(values, counts, everywhere=everywhere)
    move_statistics(norm, mean, variance, count, enough)
    return normalised(norm, values, mean, variance).to(rows.dtype)


def normalised(norm: _BatchNorm, values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Normalise values [N, C, ...] by mean and variance [C], then scale and shift them like BatchNorm."""
    shape = [1, -1, *[1] * (values.dim() - 2)]
    normal = (values - mean.view(shape)) * torch.rsqrt(variance + norm.eps).view(shape)
    return normal * norm.weight.view(shape) + norm.bias.view(shape) if norm.affine else normal


def statistics(
    values: Tensor, counts: Tensor | None = None, *, everywhere: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean [C], biased variance [C] and number (a scalar) of values [N, C, ...], with gradients.

    The variance over all processes is the weighted mean of their variances and of the squared distances of their means
    from the overall mean, which avoids a difference of large squares.

    Args:
        values: [N, C, ...] float32 or wider.
        counts: [N] bool, valid rows; None uses all.
        everywhere: Whether to combine all processes.
    """
    lines = values.transpose(0, 1).flatten(1)  # [C, N ...]
    if counts is None:
        count = lines.new_full((1,), lines.shape[1])
        own_mean = lines.sum(dim=1) / count.clamp(min=1)
        squares = (lines - own_mean[:, None]).square().sum(dim=1)
    else:
        weight = counts.to(lines.dtype)
        count = weight.sum()[None]
        own_mean = (lines * weight).sum(dim=1) / count.clamp(min=1)
        squares = ((lines - own_mean[:, None]).square() * weight).sum(dim=1)
    own_variance = squares / count.clamp(min=1)
    if not everywhere:
        return own_mean, own_variance, count[0]
    every = gather_with_gradient(torch.cat([count, own_mean, own_variance])[None])  # [R, 1 + 2 C]
    numbers, means, variances = torch.split(every, [1, len(own_mean), len(own_mean)], dim=1)
    total = numbers.sum().clamp(min=1)
    mean = (numbers * means).sum(dim=0) / total
    variance = (numbers * (variances + (means - mean).square())).sum(dim=0) / total
    return mean, variance, total.detach()


@torch.no_grad()
def move_statistics(
    norm: _BatchNorm, mean: Tensor, variance: Tensor, count: Tensor, enough: Tensor | None = None
) -> None:
    """Update BatchNorm's running statistics, with the unbiased variance as in torch's layers.

    Args:
        norm: BatchNorm in training mode.
        mean: [C].
        variance: [C], biased.
        count: Scalar, number of values.
        enough: Scalar bool; False skips the update. None always updates.
    """
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1 if enough is None else enough)
    share = 1 / norm.num_batches_tracked.clamp(min=1).to(mean.dtype) if norm.momentum is None else norm.momentum
    share = share if enough is None else share * enough
    unbiased = variance * count / (count - 1).clamp(min=1)
    for running, now in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        running.lerp_(now.to(running.dtype), share if isinstance(share, float) else share.to(running.dtype))
