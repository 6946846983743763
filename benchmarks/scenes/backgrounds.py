"""The photographs behind the objects, from desktops' wallpapers and from GCompris (GPL, CC-BY, CC-BY-SA; see each)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from PIL import Image

from benchmarks.scenes.fetch import Fetched, Package, fetch, keep_copyright
from benchmarks.scenes.lists import read_list
from benchmarks.scenes.qt_resources import files_in
from benchmarks.scenes.stock import Photograph
from dovetail.errors import DovetailError

LONG_SIDE_PX = 1280
QUALITY = 95
PACKAGES = (
    Package(
        "plasma-workspace-wallpapers",
        "debian",
        "4:5.27.5-2",
        "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b",
    ),
    Package(
        "lomiri-wallpapers-16.04",
        "debian",
        "20.04.0-2",
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
    ),
    Package(
        "mate-backgrounds",
        "debian",
        "1.26.0-1",
        "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
    ),
    Package(
        "gcompris-qt-data",
        "debian",
        "3.1-2",
        "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
    ),
)


def fetch_photographs(cache: Path) -> list[Fetched]:
    """Return the listed photographs in the cache, fetched where they are missing."""
    return [fetch(package, cache, partial(keep_photographs, package), edition="1") for package in PACKAGES]


def keep_photographs(package: Package, unpacked: Path, kept: Path) -> None:
    """Save a package's listed photographs, their longer side at most 1280 px."""
    names = read_list("photographs")[package.name]
    opener: Callable[[Path, list[str]], Iterator[tuple[str, bytes]]] = (
        from_archives if package.name == "gcompris-qt-data" else from_files
    )
    for number, (name, content) in enumerate(opener(unpacked / "usr" / "share", names)):
        with Image.open(io.BytesIO(content)) as picture:
            small = picture.convert("RGB")
        small.thumbnail((LONG_SIDE_PX, LONG_SIDE_PX), Image.Resampling.LANCZOS)
        stem = name.replace(" ", "-").replace("/", "-").rpartition(".")[0]
        small.save(kept / f"{number:03d}-{stem}.jpg", quality=QUALITY)
    keep_copyright(package, unpacked, kept)


def from_files(share: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the listed files."""
    for name in names:
        yield name, (share / name).read_bytes()


def from_archives(share: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the listed files out of archives of resources."""
    archives = dict.fromkeys(name.split(" ")[0] for name in names)
    for archive in archives:
        activity = archive.removesuffix(".rcc")
        inside = dict(files_in((share / "gcompris-qt" / "rcc" / archive).read_bytes()))
        for name in (one for one in names if one.startswith(f"{archive} ")):
            path = f"gcompris/src/activities/{activity}/resource/{name.split(' ')[1]}"
            if path not in inside:
                raise DovetailError(f"{archive} holds no {path}; this version of the package is not the listed one.")
            yield name, inside[path]


def read_photographs(folders: list[Path]) -> list[Photograph]:
    """Return the photographs in the order of the list."""
    photographs = []
    for folder in folders:
        for path in sorted(folder.glob("*.jpg")):
            with Image.open(path) as picture:
                photographs.append(Photograph(f"{folder.name}/{path.stem}", picture.convert("RGB")))
    return photographs
