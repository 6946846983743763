"""Image sources: a folder, an archive, a list of paths, or a dataset. Images are indexed from 0 in a stable order."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from dovetail.data.folders import HEAD_BYTES, inventory, left_out, named_as_image, with_slashes
from dovetail.data.items import encoded_item, image_in, opened_item, side_in
from dovetail.data.order import Order, epoch_order
from dovetail.data.reading.archives import Archive, Member
from dovetail.data.reading.decode import LazyImage, UnreadableError, open_bytes, open_file, read_file
from dovetail.data.reading.recognise import FORMATS_READ, looks_like_image
from dovetail.errors import DataError


class ImageSource(ABC):
    """Indexed images. Sources are small and picklable, so each worker gets its own copy.

    Attributes:
        left_out: A sentence about files that are skipped, or an empty string.
    """

    left_out: str = ""

    @property
    @abstractmethod
    def num_images(self) -> int:
        """Number of images, including unreadable ones."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return a readable name of image `index`: its path if it has one."""

    @abstractmethod
    def open(self, index: int, channels: int) -> LazyImage:
        """Open image `index` with `channels` channels. Raise `UnreadableError` if it cannot be read."""

    def order(self, *, seed: int, epoch: int) -> Order:
        """Return the image order of an epoch, a pure function of seed and epoch. Override it to suit the storage."""
        return epoch_order(self.num_images, seed=seed, epoch=epoch)

    def fetch(self, index: int) -> None:  # noqa: B027 - most images are local
        """Download image `index` if it is remote. The time limit for reading an image does not apply here."""

    def encoded(self, index: int) -> bytes:
        """Return image `index` as the bytes of a file. Raise `UnreadableError` if it cannot be read."""
        pixels = self.open(index, 3).decode(1).permute(1, 2, 0).contiguous().numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


class PathSource(ImageSource):
    """Image files, in the order of `paths`."""

    def __init__(self, paths: Iterable[str | Path], *, left_out: str = "") -> None:
        self.left_out = left_out
        self._paths = [os.fspath(path) for path in paths]

    @property
    def num_images(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return self._paths[index]

    def open(self, index: int, channels: int) -> LazyImage:
        return open_file(self._paths[index], channels)

    def encoded(self, index: int) -> bytes:
        return read_file(self._paths[index])


class ArchiveSource(ImageSource):
    """Images in an archive, in its order. Nothing that the archive says about its members is trusted."""

    def __init__(self, archive: Archive) -> None:
        """List the archive.

        Raises:
            DataError: It cannot be listed, or has no image.
        """
        self._archive = archive
        self._members: list[Member] = []
        others: Counter[str] = Counter()
        for member in archive.members():
            if _is_hidden(member.name):
                continue
            if self._is_candidate(member):
                self._members.append(member)
            else:
                others[Path(member.name).suffix.lower()] += 1
        self.left_out = left_out(others)
        if not self._members:
            raise DataError(
                f"Found {inventory(others, 0)} but no images in {str(archive.path)!r}; expected an archive of "
                f"{FORMATS_READ}."
            )

    @property
    def num_images(self) -> int:
        return len(self._members)

    def name(self, index: int) -> str:
        return f"{self._archive.path}/{self._members[index].name}"

    def open(self, index: int, channels: int) -> LazyImage:
        return open_bytes(self.encoded(index), channels)

    def encoded(self, index: int) -> bytes:
        return self._archive.read(self._members[index])

    def _is_candidate(self, member: Member) -> bool:
        """Return whether the member looks like an image, judged by its name first and by its content otherwise."""
        if named_as_image(member.name):
            return True
        try:
            return looks_like_image(self._archive.read(member, HEAD_BYTES))
        except UnreadableError:
            return False


class DatasetSource(ImageSource):
    """A map-style dataset. `image_in` says which items are images."""

    def __init__(self, dataset: Dataset[Any] | Sequence[Any]) -> None:
        if not isinstance(dataset, Sized):
            raise DataError(
                f"A {type(dataset).__name__} has no length; pass a map-style dataset, or write the images to shards "
                "with dovetail.prepare."
            )
        self._dataset: Any = dataset
        self._num_images = len(dataset)

    @property
    def num_images(self) -> int:
        return self._num_images

    def name(self, index: int) -> str:
        return f"{type(self._dataset).__name__}[{index}]"

    def open(self, index: int, channels: int) -> LazyImage:
        item = self._item(index)
        return replace(opened_item(image_in(item), channels), side=side_in(item))

    def encoded(self, index: int) -> bytes:
        return encoded_item(image_in(self._item(index)))

    def _item(self, index: int) -> Any:
        try:
            return self._dataset[index]
        except Exception as error:  # user code: one bad item must not end the run
            raise UnreadableError(f"{type(error).__name__}: {error}") from error


def read_list(path: Path) -> list[str]:
    """Return the paths in a text file, one per line. Empty lines are skipped."""
    content = path.read_bytes()
    if looks_like_image(content[:HEAD_BYTES]):
        raise DataError(f"{str(path)!r} is a single image; specify its folder, or a text file of paths.")
    if b"\0" in content:
        raise DataError(
            f"{str(path)!r} is not a text file; specify a folder, an archive, or a text file with one path per line."
        )
    lines = os.fsdecode(content).split("\n")
    paths = [_listed(path.parent, line.strip()) for line in lines if line.strip()]
    if not paths:
        raise DataError(f"The list {str(path)!r} is empty; write one image path per line.")
    return paths


def _listed(folder: Path, name: str) -> str:
    """Return the path in a line of a list. Windows backslashes are converted if no such file exists."""
    found = os.path.join(folder, name)  # noqa: PTH118 (keeps odd bytes)
    if "\\" in name and not os.path.exists(found):  # noqa: PTH110 (as above)
        return os.path.join(folder, with_slashes(name))  # noqa: PTH118
    return found


def _is_hidden(name: str) -> bool:
    """Return whether a file in an archive is hidden, or was added by macOS."""
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))
