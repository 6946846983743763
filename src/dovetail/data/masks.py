"""Masks of images, for methods that compare segments (DetCon). A mask is a label map with one integer per pixel.

    --masks FOLDER            one file per image with the same relative path, except for the suffix: masks/a/1.png for
                              a/1.jpg
    --masks felzenszwalb      computed from the images (needs `pip install 'dovetail-ssl[masks]'`)
    a dataset (in Python)     items that are mappings with the key "masks": a Pillow image, array or tensor [H, W]

A mask may be smaller or larger than its image if it has the same aspect ratio. Files are 8- or 16-bit images with one
channel or a palette, RGB images in which each colour is a segment, or .npy arrays. Every integer is a segment, 0
included.

Shapes: h x w pixels of a mask, C channels.
"""

from __future__ import annotations

import io
import os
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dovetail.data.folders import list_images, with_slashes
from dovetail.data.reading.decode import LazyImage, UnreadableError, opened, read_file
from dovetail.data.sources import ImageSource
from dovetail.errors import DataError, OptionsError, ResourceError, counted
from dovetail.views.plan import SegmentSpec, ViewPlan
from dovetail.views.sampling import SHRINK_MARGIN, SHRINKS

MASKS, INDEX = "masks", "index"
FELZENSZWALB = "felzenszwalb"
_NPY = ".npy"
_LOOKED_AT = 8  # images whose side data is checked before a run
_COLOUR = np.array([1, 1 << 8, 1 << 16], dtype=np.int32)


class Masks(ABC):
    """The masks of a source's images. They are small and picklable, so each worker gets its own copy."""

    @abstractmethod
    def labels(self, index: int, image: LazyImage) -> np.ndarray:
        """Return the mask [h, w] of an opened image, as integers. Raise `UnreadableError` if it cannot be read."""


class ItemMasks(Masks):
    """Masks in the items of a dataset, under the key "masks"."""

    def labels(self, index: int, image: LazyImage) -> np.ndarray:
        if MASKS not in image.side:
            raise UnreadableError(f"its item has no key {MASKS!r}")
        value = image.side[MASKS]
        return fitting(as_labels(value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)), image)


class FolderMasks(Masks):
    """Masks in the files of a folder."""

    def __init__(self, source: ImageSource, folder: Path) -> None:
        """Find the mask of every image.

        Raises:
            DataError: The folder does not exist, or an image has no mask in it.
        """
        if not folder.is_dir():
            raise DataError(f"Found no folder of masks at {str(folder)!r}; specify one with --masks.")
        found = {_stem(os.path.relpath(path, folder)): path for path in list_images(folder).images}
        names = [source.name(index) for index in range(source.num_images)]
        self._paths = [next((found[tail] for tail in _tails(name) if tail in found), "") for name in names]
        missing = [name for name, path in zip(names, self._paths, strict=True) if not path]
        if missing:
            raise DataError(
                f"Found no mask in {str(folder)!r} for {counted(len(missing), 'image')} of {source.num_images:,}, such "
                f"as {missing[0]!r}; name each mask like its image, or compute masks with --masks {FELZENSZWALB}."
            )

    def labels(self, index: int, image: LazyImage) -> np.ndarray:
        try:
            return fitting(read_labels(self._paths[index]), image)
        except UnreadableError as error:
            raise UnreadableError(f"its mask {self._paths[index]}: {error}") from error


class FelzenszwalbMasks(Masks):
    """Masks computed with Felzenszwalb and Huttenlocher's algorithm, by the worker that reads the image.

    They only depend on the image and the spec. A folder caches them as PNGs, since they take far longer than reading an
    image.
    """

    def __init__(self, spec: SegmentSpec, *, cache: Path | None = None) -> None:
        """Check that scikit-image is installed; raise `ResourceError` otherwise."""
        try:
            import skimage.segmentation  # noqa: F401
        except ImportError as error:
            raise ResourceError(
                f"--masks {FELZENSZWALB} needs scikit-image; install it with `pip install 'dovetail-ssl[masks]'`."
            ) from error
        self._spec = spec
        self._cache = cache

    def labels(self, index: int, image: LazyImage) -> np.ndarray:
        file = None if self._cache is None else self._cache / f"{index // 1000:05d}" / f"{index:08d}.png"
        if file is not None and file.is_file():
            try:
                return fitting(read_labels(file), image)
            except UnreadableError:  # damaged: compute it again
                pass
        labels = segment(reduced(image, self._spec.side_px), self._spec)
        if file is not None and labels.max() < 1 << 16:
            save_labels(labels, file)
        return labels


def segment(pixels: Tensor, spec: SegmentSpec) -> np.ndarray:
    """Return the segments [h, w] of an image [C, h, w] with values in [0, 1]."""
    from skimage.segmentation import felzenszwalb

    array = pixels.permute(1, 2, 0).numpy().astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on images with other than three channels
        found: np.ndarray = felzenszwalb(array, scale=spec.scale, min_size=spec.min_px, channel_axis=-1)
    return found.astype(np.int32)


def reduced(image: LazyImage, side_px: int) -> Tensor:
    """Return an image [C, h, w] in [0, 1] whose longer side has at most `side_px` pixels."""
    longer = max(image.width_px, image.height_px)
    shrink = max(one for one in SHRINKS if one == 1 or longer >= one * side_px * SHRINK_MARGIN)
    pixels = image.decode(shrink).float()[None] / 255
    if longer > side_px:
        height, width = (max(1, round(side * side_px / longer)) for side in (image.height_px, image.width_px))
        pixels = F.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)
    return pixels[0]


def read_labels(path: str | Path) -> np.ndarray:
    """Return the label map [h, w] in a file. Raise `UnreadableError` if it has none."""
    content = read_file(path)
    if str(path).lower().endswith(_NPY):
        try:
            return as_labels(np.load(io.BytesIO(content), allow_pickle=False))
        except UnreadableError:
            raise
        except Exception as error:  # damaged files make NumPy raise almost anything
            raise UnreadableError(f"{type(error).__name__}: {error}") from error
    with opened(content) as image:
        return as_labels(np.asarray(image))


def save_labels(labels: np.ndarray, file: Path) -> None:
    """Save a label map below 65,536 as PNG. Does nothing if the disk is full: it is only a cache."""
    aside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels.astype(np.uint16)).save(aside, "PNG")
        aside.replace(file)
    except OSError:
        aside.unlink(missing_ok=True)


def as_labels(array: np.ndarray) -> np.ndarray:
    """Return an array of labels as int32 [h, w]. In an RGB array [h, w, 3], each colour is a label."""
    if array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8:
        return np.asarray(array[:, :, :3].astype(np.int32) @ _COLOUR)
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[:, :, 0]
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "biu":
        raise UnreadableError(
            f"expected a mask of integers [height, width], got {array.dtype} with the shape {list(array.shape)}"
        )
    if array.dtype.itemsize > 4 or array.dtype == np.uint32:
        bounds = np.iinfo(np.int32)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise UnreadableError(f"expected labels that fit into 32 bits, got up to {array.max()}")
    return array.astype(np.int32)


def fitting(labels: np.ndarray, image: LazyImage) -> np.ndarray:
    """Return a mask; raise `UnreadableError` unless it has the aspect ratio of its image, up to a pixel."""
    (height, width), (tall, wide) = labels.shape, (image.height_px, image.width_px)
    if abs(height * wide - width * tall) > max(tall, wide):
        raise UnreadableError(f"it has {width} x {height} pixels, but the image has {wide} x {tall}")
    return labels


def open_masks(
    given: str | Path | None,
    source: ImageSource,
    plan: ViewPlan,
    *,
    channels: int = 3,
    cache: Path | None = None,
) -> Masks | None:
    """Open the masks that a view plan needs, and check that the source has its other side data.

    Args:
        given: A folder of masks, "felzenszwalb" to compute them, or None for those in the items of a dataset.
        source: Images.
        plan: View plan. Without `segments`, it needs no masks, and the result is None.
        channels: Number of channels that images are decoded with.
        cache: Folder for computed masks.

    Raises:
        DovetailError: There are no masks or other side data, or masks are given that the plan does not need.
    """
    wanted = [name for name in plan.side if name != INDEX]
    asks = wanted or (plan.segments is not None and given is None)
    offered = offered_by(source, channels) if asks else frozenset()
    for name in wanted:
        if name not in offered:
            raise DataError(
                f"The method needs the side data {name!r}, but the items of the dataset have no such key; pass a "
                f"dataset in Python whose items are mappings with the keys 'image' and {name!r}."
            )
    if plan.segments is None:
        if given is not None:
            raise OptionsError("The method does not use masks; omit --masks, or use a method such as detcon.")
        return None
    if given is None:
        if MASKS in offered:
            return ItemMasks()
        raise DataError(
            f"The method needs masks of the images; specify a folder with --masks, use --masks {FELZENSZWALB} to "
            f"compute them, or (in Python) pass a dataset whose items have the key {MASKS!r}."
        )
    if str(given) == FELZENSZWALB:
        return FelzenszwalbMasks(plan.segments, cache=cache)
    return FolderMasks(source, Path(given))


def offered_by(source: ImageSource, channels: int) -> frozenset[str]:
    """Return the names of the side data of the first readable image."""
    for index in range(min(_LOOKED_AT, source.num_images)):
        try:
            source.fetch(index)
            return frozenset(source.open(index, channels).side)
        except UnreadableError:
            continue
    return frozenset()


def side_tensors(plan: ViewPlan, image: LazyImage, index: int) -> dict[str, Tensor]:
    """Return the side data of an image that a plan asks for, by name. Raise `UnreadableError` if some is missing."""
    found: dict[str, Tensor] = {}
    for name in plan.side:
        value: Any = index if name == INDEX else image.side.get(name)
        try:
            found[name] = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            had = "no" if value is None else f"a {type(value).__name__} as"
            raise UnreadableError(f"its item has {had} {name!r}; expected a number, an array or a tensor") from error
    return found


def _stem(path: str) -> str:
    """Return a relative path with forward slashes and without its suffix."""
    folder, _, name = with_slashes(path).rpartition("/")
    stem = os.path.splitext(name)[0]  # noqa: PTH122 (a Path for each of millions of files)
    return f"{folder}/{stem}" if folder else stem


def _tails(name: str) -> list[str]:
    """Return the possible relative paths of an image without its suffix, the longest first."""
    parts = _stem(name).split("/")
    return ["/".join(parts[first:]) for first in range(len(parts))]
