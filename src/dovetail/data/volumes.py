"""Slices of NIfTI volumes as a source of images."""

from __future__ import annotations

import io
import logging
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from dovetail.data.order import Order, ShardOrder
from dovetail.data.reading.decode import LazyImage, UnreadableError, from_array
from dovetail.data.reading.nifti import Volume, read_header, read_values, slice_of
from dovetail.data.sources import ImageSource
from dovetail.errors import DataError, counted

WINDOW_SLICES = 2000
CACHE_BYTES = 1 << 30

log = logging.getLogger(__name__)


class VolumeSource(ImageSource):
    """The slices of several volumes along the third axis, one volume after another.

    Slices of uncompressed volumes are read from their place in the file. A compressed volume is inflated as a whole, so
    slices of a few volumes are shuffled together, and each process keeps up to 1 GiB of inflated volumes.
    """

    def __init__(self, volumes: Sequence[Volume], *, left_out: str = "") -> None:
        self.left_out = left_out
        self.volumes = tuple(volumes)
        self._counts = np.array([volume.num_slices for volume in volumes], dtype=np.int64)
        self._ends = np.cumsum(self._counts)
        self._inflated: OrderedDict[int, bytes] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_inflated": OrderedDict()}

    @property
    def num_images(self) -> int:
        return int(self._ends[-1])

    def place(self, index: int) -> tuple[int, int]:
        """Return the index of an image's volume, and of its slice."""
        volume = int(np.searchsorted(self._ends, index, side="right"))
        return volume, index - int(self._ends[volume] - self._counts[volume])

    def name(self, index: int) -> str:
        volume, number = self.place(index)
        return f"{self.volumes[volume].path}#{number}"

    def order(self, *, seed: int, epoch: int) -> Order:
        if not any(volume.packed for volume in self.volumes):
            return super().order(seed=seed, epoch=epoch)
        return ShardOrder(self._counts, seed=seed, epoch=epoch, window_images=WINDOW_SLICES)

    def open(self, index: int, channels: int) -> LazyImage:
        return from_array(self._slice(index), channels)

    def encoded(self, index: int) -> bytes:
        file = io.BytesIO()
        np.save(file, self._slice(index), allow_pickle=False)
        return file.getvalue()

    def _slice(self, index: int) -> np.ndarray:
        number, within = self.place(index)
        volume = self.volumes[number]
        if volume.packed and number not in self._inflated:
            self._inflated[number] = read_values(volume)
            while len(self._inflated) > 1 and sum(map(len, self._inflated.values())) > CACHE_BYTES:
                self._inflated.popitem(last=False)
        return slice_of(volume, within, self._inflated.get(number))


def open_volumes(paths: Sequence[str], *, left_out: str = "") -> VolumeSource:
    """Read the headers of NIfTI files. Files that cannot be read are reported and skipped.

    Raises:
        DovetailError: nibabel is not installed, or none of the files can be read.
    """
    volumes: list[Volume] = []
    faults: list[str] = []
    for path in paths:
        try:
            volumes.append(read_header(path))
        except UnreadableError as error:
            faults.append(f"{path} ({error})")
    if not volumes:
        raise DataError(f"No NIfTI volume can be read, such as {faults[0]}; check --data.")
    if faults:
        log.warning("Skipped %s that cannot be read, such as %s.", counted(len(faults), "NIfTI volume"), faults[0])
    return VolumeSource(volumes, left_out=left_out)
