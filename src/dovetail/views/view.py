"""A view: pixels and their origin, and the geometry between views of one image.

Shapes: B images, C channels, H x W pixels, S query patches, h x w patches of a ViT.
Boxes are `(x1, y1, x2, y2)` in [0, 1] of the source image, x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

Role = Literal["global", "local"]


@dataclass(frozen=True)
class View:
    """A batch of crops, one per image, all with the same size and role.

    Attributes:
        pixels: [B, C, H, W] float, normalised.
        box: [B, 4] float32, the crop in the image's [0, 1] frame, before flipping.
        flipped: [B] bool, whether the pixels were mirrored left to right after cropping.
        source_px: [B, 2] float32, the image's (width, height) in pixels.
        role: "global" or "local". Global views come first in a list of views.
        mask: [B, h, w] bool, patches that the student does not see (iBOT); None without masking.
        masked: Number of masked patches in the batch, which avoids waiting for the device; None if not counted yet.
        queries: [B, S, C, P, P] float, query crops (ADCLR, PQCL); None without them.
        query_box: [B, S, 4] float32, the queries' crops in the image's [0, 1] frame; None without them.
        points: [B, N, 2] float32, (x, y) in the image's [0, 1] frame, at which terms sample their maps; None without
            them. Objectives only get them for sampled maps: row i of maps [B, D, N, 1] is then at point i.
        map_size: (height, width) in cells of the sampled map; None without sampling.
        segments: [B, H, W] int32, the segment of each pixel (DetCon), cropped and mirrored like the pixels; None
            without segments.
        picks: [B, S] float32 in [0, 1), random numbers that choose the sampled segments; None without segments.
        ids: [B, S] int, the segments over which the map of a term is averaged; row i of maps [B, D, S, 1] is then
            segment `ids[:, i]`. Only objectives of terms on segments get them.
        side: Side data of the images by name, each [B, ...], such as labels and indices (`ViewPlan.side`).
    """

    pixels: Tensor
    box: Tensor
    flipped: Tensor
    source_px: Tensor
    role: Role = "global"
    mask: Tensor | None = None
    masked: int | None = None
    queries: Tensor | None = None
    query_box: Tensor | None = None
    points: Tensor | None = None
    map_size: tuple[int, int] | None = None
    segments: Tensor | None = None
    picks: Tensor | None = None
    ids: Tensor | None = None
    side: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, pixels: Tensor, *, box: Tensor | None = None, flipped: Tensor | None = None, role: Role = "global"
    ) -> View:
        """Return a view of pixels [B, C, H, W].

        Args:
            pixels: Normalised pixels.
            box: [B, 4], crops in their images' [0, 1] frames; defaults to the whole images.
            flipped: [B] bool, whether the pixels were mirrored; defaults to False.
            role: "global" or "local".
        """
        batch, height, width = len(pixels), *pixels.shape[-2:]
        whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=pixels.device).expand(batch, 4)
        size = torch.tensor([[float(width), float(height)]], device=pixels.device).expand(batch, 2)
        return cls(
            pixels=pixels,
            box=whole if box is None else box,
            flipped=torch.zeros(batch, dtype=torch.bool, device=pixels.device) if flipped is None else flipped,
            source_px=size,
            role=role,
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> View:
        """Return the view with every tensor on `device`."""
        return self.mapped(lambda value: value.to(device, non_blocking=non_blocking))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> View:
        """Return the view with `change` applied to every tensor, side data included."""
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **changed, side={name: change(value) for name, value in self.side.items()})

    def without_mask(self) -> View:
        """Return the view for the teacher, without a mask."""
        return replace(self, mask=None, masked=None)


def overlap_box(a: View, b: View) -> Tensor:
    """Return the overlap of `b` with `a` in the [0, 1] frame of `a`'s pixels: [B, 4] (x1, y1, x2, y2).

    The frame is that of the pixels as the network sees them, so x is mirrored if `a` is flipped. Boxes of crops without
    an intersection have a negative extent (SlotCon's convention); use `overlaps` to find them.
    """
    left_top = torch.maximum(a.box[:, :2], b.box[:, :2])
    right_bottom = torch.minimum(a.box[:, 2:], b.box[:, 2:])
    size = a.box[:, 2:] - a.box[:, :2]
    x1, y1 = ((left_top - a.box[:, :2]) / size).unbind(1)
    x2, y2 = ((right_bottom - a.box[:, :2]) / size).unbind(1)
    mirrored_x1, mirrored_x2 = 1 - x2, 1 - x1
    x1, x2 = torch.where(a.flipped, mirrored_x1, x1), torch.where(a.flipped, mirrored_x2, x2)
    return torch.stack([x1, y1, x2, y2], dim=1)


def overlaps(box: Tensor) -> Tensor:
    """Return [B] bool: whether overlap boxes [B, 4] have a positive width and height."""
    return (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])


def corners_px(view: View) -> Tensor:
    """Return [B, 4] the centres of the crop's corner pixels over (width - 1, height - 1) (PixPro's frame).

    x1 and x2 are swapped if the view is flipped, so the width is then negative (PixPro's convention).
    """
    extent = (view.source_px - 1).clamp(min=1)  # the centre of a one-pixel image is at 0
    x1, y1 = (view.box[:, :2] * view.source_px / extent).unbind(1)
    x2, y2 = ((view.box[:, 2:] * view.source_px - 1) / extent).unbind(1)
    x1, x2 = torch.where(view.flipped, x2, x1), torch.where(view.flipped, x1, x2)
    return torch.stack([x1, y1, x2, y2], dim=1)


def align(maps: Tensor, box: Tensor, flipped: Tensor) -> Tensor:
    """Resample maps [B, C, H, W] on their overlap `box` [B, 4] and undo flips, so that cells of two views correspond.

    Bilinear interpolation at bin centres with border clamp, like RoIAlign with one sample per bin for a box that is not
    larger than the map. Images whose box has no extent return zeros without gradients (RoIAlign's convention); mask
    them with `overlaps`.
    """
    height, width = maps.shape[2:]
    box = box.to(maps.dtype)
    x = _bin_centres(box[:, 0], box[:, 2], width)  # [B, W]
    y = _bin_centres(box[:, 1], box[:, 3], height)  # [B, H]
    aligned = between_cells(maps, x, y) if maps.device.type == "mps" else sampled(maps, x, y)
    aligned = torch.where(flipped[:, None, None, None], aligned.flip(3), aligned)
    return torch.where(overlaps(box)[:, None, None, None], aligned, torch.zeros_like(aligned))


def sampled(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate maps [B, C, H, W] at all pairs of x [B, w] and y [B, h] in [0, 1]; see `align`: [B, C, h, w]."""
    batch, width, height = len(maps), x.shape[1], y.shape[1]
    grid = torch.stack([x[:, None, :].expand(batch, height, width), y[:, :, None].expand(batch, height, width)], dim=-1)
    return torch.nn.functional.grid_sample(
        maps, grid * 2 - 1, mode="bilinear", padding_mode="border", align_corners=False
    )


def between_cells(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Implement `sampled` with matrix products.

    Used on Apple's GPU, whose sampling supports neither this border mode nor gradients before torch 2.13.
    """
    return (cell_weights(y, maps.shape[2])[:, None] @ maps) @ cell_weights(x, maps.shape[3])[:, None].mT


def cell_weights(places: Tensor, cells: int) -> Tensor:
    """Return [..., N, cells]: bilinear weights of the cells at positions [..., N] in [0, 1] over all cells.

    Positions before the centre of the first cell use only the first cell, and those after the last only the last.
    """
    at = (places * cells - 0.5).clamp(0, cells - 1)
    distances = at[..., None] - torch.arange(cells, device=at.device, dtype=at.dtype)
    return (1 - distances.abs()).clamp(min=0)


def _bin_centres(low: Tensor, high: Tensor, bins: int) -> Tensor:
    """Return [B, bins]: the centres of equal bins between `low` and `high` [B]."""
    share = (torch.arange(bins, device=low.device, dtype=low.dtype) + 0.5) / bins
    return low[:, None] + (high - low)[:, None] * share
