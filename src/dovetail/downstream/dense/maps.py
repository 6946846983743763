"""Feature maps of labelled images: in memory, or computed by a network in batches.

A *tap name* is a map of the network ("c4", "p2"), "encoder" for its deepest encoder map, "decoder" for its finest
decoder map, or several maps joined by "+" ("c4+c5"). The cells of joined maps are L2-normalised, so that they have
equal weight, and resized to the finest map.

Shapes: B images, C channels of a map, h x w cells, H x W pixels of a mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dovetail.downstream.labels.images import resized
from dovetail.downstream.labels.labelled import Labelled, LabelledSet
from dovetail.downstream.labels.mask_sets import classes_of
from dovetail.downstream.machine import Machine, ahead, normalised
from dovetail.downstream.probe.features import whole_view
from dovetail.downstream.segment.metrics import IGNORE_INDEX
from dovetail.errors import DataError, OptionsError, unknown_name
from dovetail.networks.network import Network, decoder_taps, deepest_encoder_tap, finest_decoder_tap
from dovetail.networks.rest import at_rest
from dovetail.recipe import Tap
from dovetail.sizes import Size, multiple_of, sides, size_in_words


class MapBatch(NamedTuple):
    """A batch of images: maps [B, C, h, w] float32 by tap name, and masks [B, H, W] int64."""

    maps: dict[str, Tensor]
    masks: Tensor


class MapSource(Protocol):
    """Feature maps of labelled images. They can be iterated over repeatedly, always in the same order."""

    @property
    def ignore_index(self) -> int:
        """Label of ignored pixels."""
        ...

    def __len__(self) -> int: ...

    def classes_in(self, index: int) -> list[int]:
        """Return the classes in an image."""
        ...

    def batches(self, *, finest_stride: int) -> Iterator[MapBatch]:
        """Yield all images in order. Maps with a stride below `finest_stride` pixels are average-pooled to it."""
        ...


@dataclass(frozen=True)
class ArrayMaps:
    """Feature maps in memory.

    Attributes:
        maps: Maps [N, C, h, w] by name.
        masks: Integer masks [N, H, W] of any size.
        ignore_index: Label of ignored pixels.
        batch_size: Number of images in a batch.
    """

    maps: Mapping[str, Tensor]
    masks: Tensor
    ignore_index: int = IGNORE_INDEX
    batch_size: int = 16

    def __post_init__(self) -> None:
        if not self.maps:
            raise DataError("maps is empty; pass at least one map [N, C, h, w] by name.")
        for name, values in self.maps.items():
            if values.dim() != 4 or len(values) != len(self.masks):
                raise DataError(
                    f"Expected maps [N, C, h, w] and masks [N, H, W], got {tuple(values.shape)} for {name!r} and "
                    f"{tuple(self.masks.shape)}."
                )

    def __len__(self) -> int:
        return len(self.masks)

    def classes_in(self, index: int) -> list[int]:
        """Return the classes in an image."""
        return classes_of(self.masks[index], self.ignore_index)

    def batches(self, *, finest_stride: int) -> Iterator[MapBatch]:
        """Yield all images in order."""
        for start in range(0, len(self), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            masks = self.masks[chosen].long()
            maps = {name: pooled(one[chosen].float(), masks, finest_stride) for name, one in self.maps.items()}
            yield MapBatch(maps, masks)


@dataclass(frozen=True)
class NetworkMaps:
    """Feature maps of a network for whole images, resized to a square. The state of the network is restored.

    Attributes:
        network: Network.
        data: Labelled images.
        at: Tap names (see the module's docstring).
        size: Side of images and masks in pixels. Images are resized with antialiasing, masks with nearest neighbour.
        mean: Mean of each channel in [0, 1].
        std: Standard deviation of each channel.
        machine: Device and precision.
        ignore_index: Label of ignored pixels.
        batch_size: Number of images in a forward pass.
    """

    network: Network
    data: LabelledSet
    at: Sequence[str]
    size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    machine: Machine
    ignore_index: int = IGNORE_INDEX
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_size(self.network, self.size)
        resolve_taps(self.network.taps, self.at)

    def __len__(self) -> int:
        return len(self.data)

    def classes_in(self, index: int) -> list[int]:
        """Return the classes in an image."""
        known: Callable[[int], list[int]] | None = getattr(self.data, "classes_in", None)  # does not read the image
        return classes_of(self.data[index].mask, self.ignore_index) if known is None else known(index)

    def batches(self, *, finest_stride: int) -> Iterator[MapBatch]:
        """Yield all images in order. Images are prefetched."""
        parts = resolve_taps(self.network.taps, self.at)
        taps = list(dict.fromkeys(tap for names in parts.values() for tap in names))
        items = ahead(self._item, range(len(self.data)), threads=self.machine.threads)
        self.machine.place(self.network)
        while batch := list(itertools.islice(items, self.batch_size)):
            masks = torch.stack([item.mask for item in batch]).to(self.machine.device)
            pixels = torch.stack([item.image for item in batch]).to(self.machine.device)
            with at_rest(self.network), self.machine.autocast():
                found = self.network(whole_view(normalised(pixels, self.mean, self.std)), taps)
            found = {tap: pooled(value.float(), masks, finest_stride) for tap, value in found.items()}
            yield MapBatch({name: joined([found[tap] for tap in names]) for name, names in parts.items()}, masks)

    def _item(self, index: int) -> Labelled:
        return resized_item(self.data[index], self.size)


class Replayed:
    """Caches feature maps if they take no more than `most` bytes. Otherwise they are computed again each time.

    Args:
        source: Feature maps.
        most: Largest size of the cache in bytes.
    """

    def __init__(self, source: MapSource, *, most: int = 2**30) -> None:
        self.source = source
        self.most = most
        self.kept: dict[int, list[MapBatch]] = {}

    @property
    def ignore_index(self) -> int:
        """Label of ignored pixels."""
        return self.source.ignore_index

    def __len__(self) -> int:
        return len(self.source)

    def classes_in(self, index: int) -> list[int]:
        """Return the classes in an image."""
        return self.source.classes_in(index)

    def batches(self, *, finest_stride: int) -> Iterator[MapBatch]:
        """Yield all images in order."""
        if finest_stride in self.kept:
            yield from self.kept[finest_stride]
            return
        found, held = list[MapBatch](), 0
        for batch in self.source.batches(finest_stride=finest_stride):
            held += sum(one.nbytes for one in (*batch.maps.values(), batch.masks))
            found = [*found, batch] if held <= self.most else []
            yield batch
        if held <= self.most:
            self.kept[finest_stride] = found


def resized_item(item: Labelled, size: Size) -> Labelled:
    """Resize an image and its mask to `size` pixels: the side of a square, or (height, width)."""
    if tuple(item.image.shape[1:]) == sides(size):
        return item
    return Labelled(resized(item.image, *sides(size)), resized_mask(item.mask, *sides(size)))


def resized_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Resize a mask [H, W] with nearest-neighbour interpolation."""
    found = F.interpolate(mask[None, None].to(torch.int32).float(), size=(height, width), mode="nearest-exact")
    return found[0, 0].long()


def pooled(maps: Tensor, masks: Tensor, finest_stride: int) -> Tensor:
    """Average-pool maps [B, C, h, w] whose cells are smaller than `finest_stride` pixels of `masks`."""
    rows, columns = (
        min(cells, max(-(-side // finest_stride), 1))
        for cells, side in zip(maps.shape[2:], masks.shape[1:], strict=True)
    )
    return maps if (rows, columns) == tuple(maps.shape[2:]) else F.adaptive_avg_pool2d(maps, (rows, columns))


def joined(maps: Sequence[Tensor]) -> Tensor:
    """Concatenate maps [B, C_i, h_i, w_i] along the channels, resized bilinearly to the size of the finest."""
    if len(maps) == 1:
        return maps[0]
    grid = tuple(max(one.shape[axis] for one in maps) for axis in (2, 3))
    unit = [F.normalize(one, dim=1) for one in maps]
    same = [
        one if tuple(one.shape[2:]) == grid else F.interpolate(one, size=grid, mode="bilinear", align_corners=False)
        for one in unit
    ]
    return torch.cat(same, dim=1)


def resolve_taps(taps: Mapping[str, Tap], at: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Resolve tap names to maps. "auto" is "encoder", and "decoder" if there is one.

    Args:
        taps: Taps of the network.
        at: Tap names (see the module's docstring).

    Raises:
        DovetailError: A name is unknown or not a map, `at` is empty, or "decoder" is specified for an encoder.
    """
    if not at:
        raise OptionsError("--at is empty; specify encoder, decoder or a map such as c4.")
    whole = {"auto": ("encoder", "decoder") if decoder_taps(taps) else ("encoder",)}
    names = dict.fromkeys(one for name in at for one in whole.get(name, (name,)))
    return {name: tuple(dict.fromkeys(_map_of(taps, part) for part in name.split("+"))) for name in names}


def _map_of(taps: Mapping[str, Tap], name: str) -> str:
    if name == "encoder":
        return deepest_encoder_tap(taps)
    if name == "decoder":
        return finest_decoder_tap(taps)
    maps = [tap for tap, about in taps.items() if about.kind == "map"]
    if name not in taps:
        raise unknown_name("tap", name, ["encoder", "decoder", *maps])
    if name not in maps:
        raise OptionsError(f"The tap {name!r} is not a feature map; choose one of {', '.join(maps)}.")
    return name


def check_size(network: Network, size: Size) -> None:
    """Raise `OptionsError` if the network does not support an image size."""
    step = network.size_multiple
    if any(side < step or side % step for side in sides(size)):
        nearest = size_in_words(multiple_of(size, step))
        raise OptionsError(
            f"The model expects an image size that is a multiple of {step} px, got {size_in_words(size)}; use "
            f"--image-size {nearest}."
        )
