"""Batches: uint8 crops and drawn parameters from workers become a list of `View` on the device.

Shapes: B images, V views of which G global, C channels, S query patches of P x P pixels, h x w patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dovetail.errors import DataError
from dovetail.views import photometric
from dovetail.views.plan import ViewPlan
from dovetail.views.points import place_points
from dovetail.views.sampling import Box, Draw, Queries, on_grid, resized_crop, shrink_of
from dovetail.views.segments import cropped
from dovetail.views.view import View

# Images with another number of channels than the plan's mean and std are scaled from [0, 1] to [-2, 2].
OTHER_MEAN, OTHER_STD = 0.5, 0.25
# Number of values to augment at a time, so that intermediate copies fit into the CPU cache or the device memory.
_CHUNK_CPU, _CHUNK_DEVICE = 1 << 20, 1 << 27


@dataclass(frozen=True)
class Skipped:
    """An unreadable image: its index and name in the source, and the reason."""

    index: int
    path: str
    reason: str


@dataclass(frozen=True)
class Views:
    """The views of one image.

    Attributes:
        crops: V tensors uint8 [C, H, W].
        box: [V, 4] float32 in [0, 1] of the image, as in `View`.
        flipped: [V] bool.
        source_px: [2] float32 (width, height).
        photometrics: [V, NUM_PARAMETERS] float32.
        masks: G tensors [h, w] bool; empty without masking.
        queries: uint8 [S, C, P, P]; None without them.
        query_box: [S, 4] float32; None without them.
        query_photometrics: [G or 1, S, NUM_PARAMETERS]; None without them.
        points: [G, N, 2] float32 in [0, 1] of the image; None without them.
        segments: V tensors int32 [H, W]; empty without segments.
        picks: [V, S] float32 in [0, 1); None without segments.
        side: Side data of the image by name; empty for an image that could not be read.
    """

    crops: tuple[Tensor, ...]
    box: Tensor
    flipped: Tensor
    source_px: Tensor
    photometrics: Tensor
    masks: tuple[Tensor, ...]
    queries: Tensor | None
    query_box: Tensor | None
    query_photometrics: Tensor | None
    points: Tensor | None
    segments: tuple[Tensor, ...]
    picks: Tensor | None
    side: Mapping[str, Tensor]


@dataclass(frozen=True)
class Sample(Views):
    """The views of one image from a worker.

    Attributes:
        epoch: Requested epoch.
        index: Requested image.
        used: Image that was used; another one if the requested image is unreadable, -1 if none could be read.
        skipped: Images that could not be read.
    """

    epoch: int
    index: int
    used: int
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class ViewBatch(Views):
    """A batch of `Sample`, every field stacked along a first dimension B. Made by `collate`, read by `to_views`.

    Attributes:
        index: [B] int64, requested images.
        used: [B] int64, used images; -1 if none could be read.
        epoch: [B] int64.
        skipped: Images that could not be read.
    """

    epoch: Tensor
    index: Tensor
    used: Tensor
    skipped: tuple[Skipped, ...]

    def __len__(self) -> int:
        return len(self.index)

    def pin_memory(self) -> ViewBatch:
        """Return the batch in page-locked memory; the data loader calls this."""
        pinned: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                pinned[field.name] = value.pin_memory()
            elif field.name in ("crops", "masks", "segments"):
                pinned[field.name] = tuple(tensor.pin_memory() for tensor in value)
            elif field.name == "side":
                pinned[field.name] = {name: tensor.pin_memory() for name, tensor in value.items()}
        return replace(self, **pinned)


def render(
    pixels: Tensor,
    draw: Draw,
    plan: ViewPlan,
    *,
    source_px: tuple[int, int],
    epoch: int,
    index: int,
    used: int,
    labels: np.ndarray | None = None,
    side: Mapping[str, Tensor] | None = None,
) -> Sample:
    """Return the views of one decoded image; boxes lie on the grid of its pixels (`on_grid`).

    Args:
        pixels: uint8 [C, H, W], the image or a version that a decoder reduced.
        draw: Random draws of the views.
        plan: View plan of `draw`.
        source_px: (width, height) of the image, the frame of the boxes.
        epoch: Epoch of the sample.
        index: Requested image of the sample.
        used: Used image of the sample.
        labels: [h, w] integers, the segment of each pixel, for a plan with segments. The map may have another size
            than the image.
        side: Side data of the image.
    """
    shrink = shrink_of(pixels, source_px)
    draw = on_grid(draw, shrink, source_px)
    views = list(zip(draw.boxes, draw.flipped, plan.views, strict=True))
    box = unit_boxes(draw.boxes, source_px)
    segments: tuple[Tensor, ...] = ()
    if labels is not None:
        segments = tuple(
            cropped(labels, corners, size_px=spec.size_px, flipped=flip)
            for corners, (_, flip, spec) in zip(box.numpy(), views, strict=True)
        )
    sample = Sample(
        crops=tuple(
            resized_crop(
                pixels,
                box,
                size_px=spec.size_px,
                interpolation=spec.interpolation,
                flipped=flip,
                shrink=shrink,
            )
            for box, flip, spec in views
        ),
        box=box,
        flipped=torch.tensor(draw.flipped),
        source_px=torch.tensor(source_px, dtype=torch.float32),
        photometrics=torch.from_numpy(draw.photometrics),
        masks=tuple(torch.from_numpy(mask) for mask in draw.masks),
        queries=None,
        query_box=None,
        query_photometrics=None,
        points=None,
        segments=segments,
        picks=None if draw.picks is None else torch.from_numpy(draw.picks),
        side=side or {},
        epoch=epoch,
        index=index,
        used=used,
    )
    if plan.points is not None and draw.points is not None:
        num_global = sum(spec.role == "global" for spec in plan.views)
        sample = replace(sample, points=place_points(draw.points, sample.box[:num_global], plan.points))
    if plan.queries is None or draw.queries is None:
        return sample
    return replace(
        sample,
        queries=_render_queries(pixels, draw.queries, size_px=plan.queries.size_px, shrink=shrink),
        query_box=unit_boxes(draw.queries.boxes, source_px),
        query_photometrics=torch.from_numpy(draw.queries.photometrics),
    )


def _render_queries(pixels: Tensor, queries: Queries, *, size_px: int, shrink: int) -> Tensor:
    """Return uint8 [S, C, P, P]."""
    return torch.stack(
        [
            resized_crop(pixels, box, size_px=size_px, interpolation="bicubic", flipped=flip, shrink=shrink)
            for box, flip in zip(queries.boxes, queries.flipped, strict=True)
        ]
    )


def unit_boxes(boxes: Sequence[Box], source_px: tuple[int, int]) -> Tensor:
    """Return [N, 4] float32 (x1, y1, x2, y2) in [0, 1] of an image of (width, height) pixels."""
    width, height = source_px
    return torch.tensor(
        [
            (box.left / width, box.top / height, (box.left + box.width) / width, (box.top + box.height) / height)
            for box in boxes
        ],
        dtype=torch.float32,
    )


def collate(samples: Sequence[Sample]) -> ViewBatch:
    """Return the batch of `samples`, in their order."""

    def stack_optional(name: str) -> Tensor | None:
        values = [getattr(sample, name) for sample in samples]
        return None if values[0] is None else torch.stack(values)

    return ViewBatch(
        crops=tuple(torch.stack(crops) for crops in zip(*(sample.crops for sample in samples), strict=True)),
        box=torch.stack([sample.box for sample in samples]),
        flipped=torch.stack([sample.flipped for sample in samples]),
        source_px=torch.stack([sample.source_px for sample in samples]),
        photometrics=torch.stack([sample.photometrics for sample in samples]),
        masks=tuple(torch.stack(masks) for masks in zip(*(sample.masks for sample in samples), strict=True)),
        queries=stack_optional("queries"),
        query_box=stack_optional("query_box"),
        query_photometrics=stack_optional("query_photometrics"),
        points=stack_optional("points"),
        segments=tuple(torch.stack(one) for one in zip(*(sample.segments for sample in samples), strict=True)),
        picks=stack_optional("picks"),
        side=stacked_side(samples),
        epoch=torch.tensor([sample.epoch for sample in samples]),
        index=torch.tensor([sample.index for sample in samples]),
        used=torch.tensor([sample.used for sample in samples]),
        skipped=tuple(skipped for sample in samples for skipped in sample.skipped),
    )


def stacked_side(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Return the side data of samples by name, each [B, ...]. Images that could not be read get zeros."""
    read = [sample.side for sample in samples if sample.side]
    stacked = {}
    for name in read[0] if read else ():
        values = [sample.side.get(name, torch.zeros_like(read[0][name])) for sample in samples]
        shapes = sorted({tuple(value.shape) for value in values})
        if len(shapes) > 1:
            raise DataError(
                f"The side data {name!r} has the shapes {', '.join(str(list(shape)) for shape in shapes)} in one "
                "batch; return the same shape for every image."
            )
        stacked[name] = torch.stack(values)
    return stacked


@torch.no_grad()
def to_views(
    batch: ViewBatch, plan: ViewPlan, device: torch.device | str = "cpu", *, channels_last: bool = False
) -> list[View]:
    """Return augmented and normalised views on `device`, in float32 regardless of autocast.

    Args:
        batch: Batch of the loader on the CPU, where its parameters are read without waiting for the device.
        plan: View plan of the loader.
        device: Device of the views.
        channels_last: Use the memory layout [B, H, W, C], which is faster for convolutions; the shape is [B, C, H, W].
    """
    device = torch.device(device)

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    mean, std = statistics(plan, batch.crops[0].shape[1])
    source_px = move(batch.source_px)
    side = {name: move(value) for name, value in batch.side.items()}
    with torch.autocast(device.type, enabled=False):
        queries = _queries(batch, mean, std, device)
        query_box = None if batch.query_box is None else move(batch.query_box)
        views = []
        for number, (crops, spec) in enumerate(zip(batch.crops, plan.views, strict=True)):
            pixels = augment(crops, batch.photometrics[:, number], mean, std, device)
            is_global = spec.role == "global"
            with_queries = is_global and len(queries) > 0
            views.append(
                View(
                    pixels=pixels.contiguous(memory_format=torch.channels_last) if channels_last else pixels,
                    box=move(batch.box[:, number]),
                    flipped=move(batch.flipped[:, number]),
                    source_px=source_px,
                    role=spec.role,
                    mask=move(batch.masks[number]) if is_global and batch.masks else None,
                    masked=int(batch.masks[number].sum()) if is_global and batch.masks else None,
                    queries=queries[number % len(queries)] if with_queries else None,
                    query_box=query_box if with_queries else None,
                    points=move(batch.points[:, number]) if is_global and batch.points is not None else None,
                    segments=move(batch.segments[number]) if batch.segments else None,
                    picks=None if batch.picks is None else move(batch.picks[:, number]),
                    side=side,
                )
            )
    return views


def statistics(plan: ViewPlan, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of each channel: those of the plan if their number matches, otherwise 0.5 and 0.25."""
    if len(plan.mean) == channels and len(plan.std) == channels:
        return plan.mean, plan.std
    return (OTHER_MEAN,) * channels, (OTHER_STD,) * channels


def augment(
    crops: Tensor, parameters: Tensor, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Tensor:
    """Return uint8 crops [B, C, H, W] as augmented, normalised float32 on `device`.

    Args:
        crops: Crops on the CPU.
        parameters: [B, NUM_PARAMETERS] of `photometric.draw`, on the CPU.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        device: Device of the result.
    """
    crops = crops.to(device, non_blocking=True)
    pixels = _empty(crops.shape, device)
    step = max(1, (_CHUNK_CPU if device.type == "cpu" else _CHUNK_DEVICE) // crops[0].numel())
    for first in range(0, len(pixels), step):
        chunk = slice(first, first + step)
        changed = photometric.apply(pixels[chunk].copy_(crops[chunk]).div_(255), parameters[chunk])
        photometric.normalise(changed, mean, std)
    return pixels


def _empty(shape: Sequence[int], device: torch.device) -> Tensor:
    """Return float32 memory.

    On a CPU it comes from NumPy, which uses large pages: the system then clears a few hundred pages for a batch instead
    of thousands.
    """
    if device.type == "cpu":
        return torch.from_numpy(np.empty(shape, dtype=np.float32))
    return torch.empty(shape, dtype=torch.float32, device=device)


def _queries(batch: ViewBatch, mean: Sequence[float], std: Sequence[float], device: torch.device) -> list[Tensor]:
    """Return [B, S, C, P, P] for each set of photometrics; empty without queries."""
    if batch.queries is None or batch.query_photometrics is None:
        return []
    shape = batch.queries.shape
    flat = batch.queries.flatten(0, 1)
    return [
        augment(flat, batch.query_photometrics[:, number].flatten(0, 1), mean, std, device).reshape(shape)
        for number in range(batch.query_photometrics.shape[1])
    ]
