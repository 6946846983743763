"""Sets of scenes on disk, made once: images, semantic and instance masks, COCO JSON, a manifest with a checksum.

    images/SPLIT/00000.jpg       masks/SPLIT/00000.png   class of each pixel, 0 for background
                                 instances/SPLIT/00000.png   object of each pixel, 0 for none
    choose/instances_{train,val}.json     to choose settings with
    measure/instances_{train,val}.json    to measure with: "val" are the test scenes, and nothing else reads them
    manifest.json, LICENCES.txt, copyright/

Either folder of annotations is a COCO set that the readers of `dovetail` know.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faster_coco_eval.core.mask as coco_mask
import numpy as np
from PIL import Image

from benchmarks.scenes.compose import Scene
from benchmarks.scenes.fetch import Fetched
from benchmarks.scenes.stock import Split
from dovetail.downstream.labels.coco_object import run_length_of
from dovetail.errors import DovetailError

MANIFEST, LICENCES = "manifest.json", "LICENCES.txt"
QUALITY = 92
ANNOTATIONS: Mapping[Split, tuple[str, ...]] = {
    "unlabelled": (),
    "train": ("choose/instances_train.json", "measure/instances_train.json"),
    "val": ("choose/instances_val.json",),
    "test": ("measure/instances_val.json",),
}


@dataclass(frozen=True)
class SceneSet:
    """A set on disk.

    Attributes:
        folder: Of everything.
        fingerprint: SHA-256 over the names and contents of all files, 16 digits.
        known: Whether it was made from the archives that the published tables name.
    """

    folder: Path
    fingerprint: str
    known: bool

    @property
    def unlabelled(self) -> Path:
        """Images to pre-train on."""
        return self.folder / "images" / "unlabelled"

    @property
    def choose(self) -> Path:
        """The labelled set to choose settings with."""
        return self.folder / "choose"

    @property
    def measure(self) -> Path:
        """The labelled set to measure with."""
        return self.folder / "measure"


@dataclass
class Annotations:
    """What a COCO file holds, as it grows."""

    classes: Sequence[str]
    images: list[dict[str, Any]] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)

    def add(self, file_name: str, scene: Scene) -> None:
        """Append an image and its objects; masks are run-lengths of exactly the pixels that each owns."""
        height, width = scene.owners.shape
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for number, label in enumerate(scene.labels, start=1):
            owned = scene.owners == number
            coded = run_length_of(owned)
            box = [float(value) for value in coco_mask.toBbox(coded)]
            self.objects.append(
                {
                    "id": len(self.objects) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": float(owned.sum()),
                    "iscrowd": 0,
                    "segmentation": coded,
                }
            )

    def write(self, path: Path) -> None:
        """Write the file."""
        categories = [{"id": number, "name": name} for number, name in enumerate(self.classes, start=1)]
        content = {"images": self.images, "annotations": self.objects, "categories": categories}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")


def write_scenes(
    folder: Path, classes: Sequence[str], scenes: Mapping[Split, Callable[[int], Scene]], counts: Mapping[Split, int]
) -> dict[str, Any]:
    """Write `counts` scenes of each split below `folder` and return what is in them, for the manifest."""
    facts: dict[str, Any] = {"classes": list(classes), "scenes": dict(counts), "objects": {}, "pixels": {}}
    for split, count in counts.items():
        annotations = Annotations(classes)
        pixels = np.zeros(len(classes) + 1, dtype=np.int64)
        for index in range(count):
            scene = scenes[split](index)
            save_scene(folder, split, index, scene)
            annotations.add(f"images/{split}/{index:05d}.jpg", scene)
            pixels += np.bincount(scene.mask.ravel(), minlength=len(pixels))
        for name in ANNOTATIONS[split]:
            annotations.write(folder / name)
        labels = [one["category_id"] - 1 for one in annotations.objects]
        facts["objects"][split] = np.bincount(labels, minlength=len(classes)).tolist()
        facts["pixels"][split] = [round(float(share), 4) for share in pixels / max(pixels.sum(), 1)]
    return facts


def save_scene(folder: Path, split: Split, index: int, scene: Scene) -> None:
    """Write a scene's picture, and its masks unless it is an unlabelled one."""
    pictures = {"images": Image.fromarray(scene.pixels)}
    if split != "unlabelled":
        pictures |= {"masks": Image.fromarray(scene.mask), "instances": Image.fromarray(scene.owners)}
    for kind, picture in pictures.items():
        place = folder / kind / split
        place.mkdir(parents=True, exist_ok=True)
        if kind == "images":
            picture.save(place / f"{index:05d}.jpg", quality=QUALITY, subsampling=0)
        else:
            picture.save(place / f"{index:05d}.png")


def made_once(
    folder: Path,
    make: Callable[[Path], dict[str, Any]],
    plan: Mapping[str, Any],
    packages: Sequence[Fetched],
    note: str,
) -> SceneSet:
    """Return the set in `folder`; make it there where there is none, whole or not at all.

    Args:
        folder: Of the set.
        make: Writes everything but manifest and licences into a folder and returns what is in it.
        plan: How it is made; kept in the manifest.
        packages: What it is made of.
        note: On its licences.

    Raises:
        DovetailError: Where the files there are not those that were written.
    """
    if not (folder / MANIFEST).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        print(f"Creating {folder}", flush=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
            fresh = Path(scratch) / "set"
            fresh.mkdir()
            facts = make(fresh)
            write_licences(fresh, packages, note)
            manifest = {
                "plan": dict(plan),
                **facts,
                "packages": [{"archive": one.archive, "sha256": one.sha256, "known": one.known} for one in packages],
                "fingerprint": fingerprint_of(fresh),
            }
            (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if fingerprint_of(folder) != manifest["fingerprint"]:
        raise DovetailError(f"Files in {folder} have changed; delete the folder to create it again.")
    return SceneSet(folder, manifest["fingerprint"], all(one["known"] for one in manifest["packages"]))


def write_licences(folder: Path, packages: Sequence[Fetched], note: str) -> None:
    """Write the note, and each package's own statement beside it."""
    (folder / LICENCES).write_text(note, encoding="utf-8")
    (folder / "copyright").mkdir()
    for package in packages:
        statement = package.folder / "copyright"
        if statement.is_file():
            shutil.copy(statement, folder / "copyright" / f"{package.archive}.txt")


def fingerprint_of(folder: Path) -> str:
    """Return the SHA-256 over names and contents of all files but the manifest, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
