"""The photographic cut-outs of tuxpaint-stamps-default, seven classes and others (GPL-2, by many authors)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path, PurePosixPath

from PIL import Image

from benchmarks.scenes.fetch import Fetched, Package, fetch, keep_copyright
from benchmarks.scenes.lists import read_list
from benchmarks.scenes.stock import OTHER, Cutout

STAMPS = Package(
    "tuxpaint-stamps-default",
    "debian",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
)
CLASSES = ("mammal", "bird", "other animal", "plant", "food", "vehicle", "household")
NO_CLASS = "-"


def fetch_stamps(cache: Path) -> Fetched:
    """Return the listed cut-outs in the cache, fetched where they are missing."""

    def keep(unpacked: Path, kept: Path) -> None:
        for names in read_list("stamps").values():
            for name in names:
                target = kept / f"{name}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(unpacked / "usr" / "share" / "tuxpaint" / "stamps" / f"{name}.png", target)
        keep_copyright(STAMPS, unpacked, kept)

    return fetch(STAMPS, cache, keep, edition="1")


def read_stamps(folder: Path) -> list[Cutout]:
    """Return the cut-outs, in the order of the list."""
    cutouts = []
    for section, names in read_list("stamps").items():
        label = OTHER if section == NO_CLASS else CLASSES.index(section)
        for name in names:
            with Image.open(folder / f"{name}.png") as picture:
                cutouts.append(Cutout(name, label, group_of(name, label), picture.convert("RGBA")))
    return cutouts


def group_of(name: str, label: int) -> str:
    """Return what may show the same thing: "gnu" for gnu-baby, gnu-sitting and gnu-stand."""
    stem = PurePosixPath(name).name.lower()
    return stem if label == OTHER else re.split("[-_]", stem)[0]
