"""Content of the cells of a map: the share of variance within images, and the share of that explained by position.

The cells of a dense map should differ because the image does. Rank and spread of pooled features miss two failures: all
cells of an image are alike, or they only differ by their position in the crop, which zero padding reveals.

Shapes: B images, C channels, H x W cells of a map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MOST_VALUES = 2**24
"""Maximum number of values of a map to use, rounded to whole images: 64 MiB of float32."""

_ROUNDING = 1e-11  # variances below this fraction of the mean square are rounding errors of float32


class MapContent(NamedTuple):
    """The shares of one map in [0, 1], as floats or scalars on the device.

    Attributes:
        within: Variance of the cells within their image divided by the variance of all cells of all images. 0 if all
            cells of an image are alike, 1 if the means of all images are equal.
        position: Share of the variance within images that the mean map over images explains. 0 if the position in the
            crop explains nothing, 1 if it explains everything.
    """

    within: Tensor | float
    position: Tensor | float


@torch.no_grad()
def map_content(maps: Tensor) -> MapContent:
    """Return the shares of a batch of maps as scalars on the device. Variances are summed over channels.

    With x_bp the cell p of image b minus the mean of its image, W the mean of |x_bp|^2, and V the mean over positions
    of |mean_b x_bp|^2:

        within   = W / (W + variance of the images' means)
        position = (B V - W) / ((B - 1) W)

    Both use unbiased estimates over images. For unrelated maps V alone would be W / B, so the numerator is the mean of
    <x_bp, x_b'p> over pairs of different images, which is then 0 on average. Negative values are set to 0. Flips are
    not
    undone: the position is that in the crop as the network sees it.

    Args:
        maps: [B, C, H, W] float, at least 2 images and 2 cells.
    """
    cells = maps.float().flatten(2)  # [B, C, P]
    means = cells.mean(dim=2, keepdim=True)
    square = cells.square().sum(dim=1).mean()
    centred = cells - means
    count = len(cells)
    within = centred.square().sum(dim=1).mean()
    between = means.squeeze(2).var(dim=0).sum()
    shared = centred.mean(dim=0).square().sum(dim=0).mean()
    common = (count * shared - within) / (count - 1)
    alike = within <= _ROUNDING * square  # False for NaN, which must stay visible
    nothing = torch.zeros_like(within)
    return MapContent(
        torch.where(alike, nothing, within / (within + between)),
        torch.where(alike, nothing, (common / within).clamp(0, 1)),
    )


def sampled_content(tap: Tensor, *, fewest: int) -> MapContent | None:
    """Return the shares of the first images of a tap, or None.

    None means that the tap is not a map, or has fewer than `fewest` images or fewer than two cells.
    """
    if tap.dim() != 4 or len(tap) < fewest or tap.shape[2] * tap.shape[3] < 2:
        return None
    return map_content(tap.detach()[: max(MOST_VALUES // tap[0].numel(), fewest)])
