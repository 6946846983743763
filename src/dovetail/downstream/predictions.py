"""Implements `dovetail predict`."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from dovetail.data.folders import find_images
from dovetail.data.reading.values import values_within
from dovetail.data.sources import read_list
from dovetail.downstream.detect.loop import as_coco, detect
from dovetail.downstream.examples import FOUND_COLOUR, SHOWN_SCORE, with_boxes
from dovetail.downstream.finished import Task, load_weights, read_task
from dovetail.downstream.labels.images import ClassFolder
from dovetail.downstream.labels.labelled import read_image
from dovetail.downstream.machine import Machine, ahead, machine
from dovetail.downstream.options import PredictOptions
from dovetail.downstream.predicted import replacing
from dovetail.downstream.probe.features import of_central_crops
from dovetail.downstream.progress import progress
from dovetail.downstream.rebuilt import build_finished
from dovetail.downstream.segment.augment import Augmentation
from dovetail.downstream.segment.colours import coloured, legend, over, palette
from dovetail.downstream.segment.loop import predict as predict_classes
from dovetail.downstream.segment.options import SegmentOptions, Window
from dovetail.errors import DataError, DovetailError, OptionsError, counted, tell
from dovetail.files.locking import in_use
from dovetail.files.missing import about_missing
from dovetail.networks.modules import module_of
from dovetail.provenance import refuse_code_in_file
from dovetail.sizes import as_size

UNREAD = "unread.jsonl"
OVERLAYS = Path("overlays")
LEGEND = Path("legend.png")


def predict(asked: PredictOptions) -> Path:
    """Write predictions."""
    refuse_code_in_file(asked)
    folder, out = Path(asked.run), Path(asked.out)
    with in_use(out, keep=False):
        task = read_task(folder)
        if asked.overlays and task.task == "classify":
            raise OptionsError(
                f"{folder} contains a classifier, whose classes have no place in an image; omit --overlays."
            )
        where = machine(asked.accelerator, asked.precision, asked.workers)
        photos = images_of(Path(asked.data))
        names = targets(task, photos, overlays=asked.overlays)
        check_apart(out, names, [Path(asked.data), *photos.paths])
        with replacing(out, names):
            left_out = write_predictions(asked, task, photos, out, where)
    drawn = f", overlays in {out / OVERLAYS}" if asked.overlays else ""
    if asked.overlays and task.task == "detect":
        drawn += f" with the boxes of a score of {max(asked.min_score, SHOWN_SCORE):g} or more"
    if asked.overlays and task.task == "segment":
        drawn += f" with the colours in {out / legend_name(written_names(photos.paths, photos.base).values())}"
    tell(f"{counted(len(photos.read), 'image')}, predictions in {out}{drawn}{left_out}")
    return out


def write_predictions(asked: PredictOptions, task: Task, photos: Images, out: Path, where: Machine) -> str:
    """Write the predictions for all images, and return a phrase about those that could not be read."""
    tell(f"Predicting {counted(len(photos.paths), 'image')} on {where.device} …")
    model, _ = build_finished(task, model=module_of(asked.model))
    load_weights(model, Path(asked.run))
    with values_within(task.value_range), progress(task.task, len(photos.paths)) as advance:
        if task.task == "segment":
            segment(task, model, photos, out, where, advance, overlays=asked.overlays)
        elif task.task == "detect":
            detections(task, model, photos, out, where, advance, asked)
        else:
            classify(task, model, photos, out, where, advance)
    return write_unread(photos, out)


@dataclass(frozen=True)
class Images:
    """Images to predict: `paths`, the folder `base` that names are relative to, and reasons for unreadable images."""

    base: Path
    paths: list[Path]
    unread: dict[Path, str] = field(default_factory=dict)

    @property
    def read(self) -> list[Path]:
        """Images that could be read so far."""
        return [path for path in self.paths if path not in self.unread]

    def pixels(self, channels: int, where: Machine, advance: Callable[[int], None]) -> Iterator[tuple[Path, Tensor]]:
        """Yield each image with its pixels [C, H, W] in 0 to 255. Unreadable images are recorded."""

        def pixels_of(path: Path) -> Tensor | str:
            try:
                return read_image(path, channels=channels)
            except DovetailError as fault:
                return reason(fault)

        for path, found in zip(self.paths, ahead(pixels_of, self.paths, threads=where.threads), strict=True):
            if isinstance(found, str):
                self.unread[path] = found
            else:
                yield path, found
            advance(1)

    def check_any(self) -> None:
        """Raise `DataError` if no image could be read."""
        if not self.read:
            why = self.unread[self.paths[0]]
            raise DataError(f"None of the {len(self.paths)} images can be read ({why}); check the data.")


def reason(fault: DovetailError) -> str:
    """Return the reason of an error about an image, without the advice."""
    return str(fault.__cause__ or fault)


def images_of(data: Path) -> Images:
    """Return the images in a folder or in a list of paths. Names are relative to the folder of the images or the list.

    Raises:
        DataError: There are no images.
    """
    if data.is_dir():
        listing, base = find_images(data), data
        found = listing.images
        if others := listing.left_out():
            tell(others)
    elif data.is_file():
        found, base = read_list(data), data.parent
    else:
        raise DataError(f"Found no folder or list of images at {data}; {about_missing(data)}")
    if not found:
        raise DataError(f"{data} contains no images; specify another folder with --data.")
    return Images(base, [Path(one) for one in found])


def relative(path: Path, base: Path) -> Path:
    """Return an image's path relative to `base`, or its file name if it is not inside `base`."""
    return path.relative_to(base) if path.is_relative_to(base) else Path(path.name)


def below(path: Path, base: Path) -> Path:
    """Return `relative`, or the file name if that starts with '..', so that output stays in its folder."""
    name = relative(Path(os.path.normpath(path)), Path(os.path.normpath(base)))
    return Path(name.name) if ".." in name.parts else name


def targets(task: Task, photos: Images, *, overlays: bool = False) -> list[Path]:
    """Return the names of all files to write."""
    single = {"segment": "classes.json", "detect": "predictions.json", "classify": "predictions.csv"}[task.task]
    names = list(written_names(photos.paths, photos.base).values())
    masks = names if task.task == "segment" else []
    drawn = [OVERLAYS / name for name in names] if overlays else []
    drawn += [legend_name(masks)] if overlays and masks else []
    return [*masks, *drawn, Path(single), Path(UNREAD)]


def legend_name(masks: Collection[Path]) -> Path:
    """Return the name of the legend, which none of the masks has."""
    names = itertools.chain([LEGEND], (LEGEND.with_stem(f"{LEGEND.stem}-{number}") for number in itertools.count(2)))
    return next(name for name in names if name not in masks)


def check_apart(out: Path, names: list[Path], inputs: list[Path]) -> None:
    """Raise `OptionsError` if a file to write in `out` is one of the inputs, which would be overwritten."""
    read = {identity(path) for path in inputs} - {None}
    for name in names:
        if identity(out / name) in read:
            raise OptionsError(
                f"{out / name} is an input image and would be overwritten; specify another folder with --out."
            )


def identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file, or None if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def write_unread(photos: Images, out: Path) -> str:
    """Write unread.jsonl with one line {"path", "reason"} per unreadable image, and return a phrase about them."""
    file = out / UNREAD
    file.unlink(missing_ok=True)  # from an earlier call
    if not photos.unread:
        return ""
    lines = [json.dumps({"path": str(path), "reason": why}) + "\n" for path, why in photos.unread.items()]
    file.write_text("".join(lines), encoding="utf-8")
    named = [path.name.encode("utf-8", "replace").decode() for path in photos.unread]
    listed = ", ".join(named[:4]) + (", …" if len(named) > 4 else "")
    return f"; skipped {len(named)} unreadable: {listed} (see {file})"


def segment(
    task: Task, model: nn.Module, photos: Images, out: Path, where: Machine, advance: Any, *, overlays: bool
) -> None:
    """Write a palette PNG of classes for each image, and classes.json.

    `overlays` also writes both blended, and a legend of the classes that were found.
    """
    options = task.options
    where.place(model).eval()
    how = SegmentOptions(
        classes=len(task.names),
        mean=task.mean,
        std=task.std,
        precision=where.precision,
        augmentation=Augmentation(within_px=tuple(options["within_px"]) if options["within_px"] else None),
        align_corners=options["align_corners"],
    )
    window = Window(*map(as_size, options["window"])) if options["window"] else None
    palette(len(task.names))  # refuses more classes than a PNG has colours
    names = written_names(photos.paths, photos.base)
    seen: set[int] = set()
    for path, pixels in photos.pixels(task.in_channels, where, advance):
        classes = predict_classes(model, pixels[None], how, window=window, device=where.device)[0]
        mask = coloured(classes)
        written = {names[path]: mask}
        if overlays:
            seen |= {*torch.unique(classes).tolist()}
            written[OVERLAYS / names[path]] = over(pixels, mask)
        for name, picture in written.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(out / name)
    photos.check_any()
    if overlays:
        legend({label: task.names[label] for label in sorted(seen)}).save(out / legend_name(names.values()))
    (out / "classes.json").write_text(json.dumps(dict(enumerate(task.names)), indent=2) + "\n", encoding="utf-8")


def written_names(paths: list[Path], base: Path) -> dict[Path, Path]:
    """Return the name of the PNG for each image: its path relative to `base`, with another suffix.

    If several images would have the same name, the old suffix is kept as part of it, followed by a number if needed.
    """
    plain = {path: below(path, base).with_suffix(".png") for path in paths}
    counts = Counter(plain.values())
    names: dict[Path, Path] = {}
    taken = {name for name, count in counts.items() if count == 1}
    for path, name in plain.items():
        if counts[name] > 1:
            name = below(path, base).with_name(path.name + ".png")
            number = 2
            while name in taken:
                name = name.with_name(f"{path.name}.{number}.png")
                number += 1
            taken.add(name)
        names[path] = name
    return names


def detections(
    task: Task, model: nn.Module, photos: Images, out: Path, where: Machine, advance: Any, asked: PredictOptions
) -> None:
    """Write predictions.json, a list with file_name, category_id, category, bbox, score and segmentation (masks).

    `overlays` also writes each image with the boxes of certain detections.
    """
    options = task.options
    where.place(model).eval()
    ids = tuple(int(one) for one in options["ids"])
    names = dict(zip(ids, task.names, strict=True))
    found: list[dict[str, Any]] = []
    written = written_names(photos.paths, photos.base)
    for path, pixels in photos.pixels(task.in_channels, where, advance):
        entries = as_coco(detect(model, [pixels.float() / 255], where)[0], ids)
        for entry in entries:
            if entry["score"] >= asked.min_score:
                name = relative(path, photos.base).as_posix()
                found.append({"file_name": name, "category": names[entry["category_id"]], **entry})
        if asked.overlays:
            sure = [entry for entry in entries if entry["score"] >= max(asked.min_score, SHOWN_SCORE)]
            boxes = torch.tensor([entry["bbox"] for entry in sure], dtype=torch.float32).reshape(-1, 4)
            words = [f"{names[entry['category_id']]} {entry['score']:.2f}" for entry in sure]
            picture = with_boxes(pixels, box_convert(boxes, "xywh", "xyxy"), FOUND_COLOUR, words)
            (out / OVERLAYS / written[path]).parent.mkdir(parents=True, exist_ok=True)
            picture.save(out / OVERLAYS / written[path])
    photos.check_any()
    (out / "predictions.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Unlabelled(ClassFolder):
    """Images without labels. Unreadable images are black, and `unread` has the reason."""

    unread: dict[Path, str] = field(default_factory=dict)

    def pixels(self, index: int, *, channels: int, side: int) -> Tensor:
        try:
            return super().pixels(index, channels=channels, side=side)
        except DovetailError as fault:
            self.unread[self.paths[index]] = reason(fault)
            return torch.zeros(channels, side, side, dtype=torch.uint8)


def classify(task: Task, model: nn.Module, photos: Images, out: Path, where: Machine, advance: Any) -> None:
    """Write predictions.csv: the file, and up to three pairs of class and probability, best first."""
    data = Unlabelled(tuple(photos.paths), (0,) * len(photos.paths), task.names, unread=photos.unread)
    logits = of_central_crops(model, data, **task.source().pixels(), machine=where, on_batch=advance)
    photos.check_any()
    best = logits.softmax(1).topk(min(3, len(task.names)), dim=1)
    with (out / "predictions.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        header = [f"{word}{rank + 1}" for rank in range(best.indices.shape[1]) for word in ("class", "probability")]
        writer.writerow(["file", *header])
        for path, row in zip(photos.paths, rows_of(best.values, best.indices, task.names), strict=True):
            if path not in photos.unread:
                writer.writerow([relative(path, photos.base).as_posix(), *row])


def rows_of(values: torch.Tensor, indices: torch.Tensor, names: tuple[str, ...]) -> Iterator[list[str]]:
    """Yield alternating classes and probabilities for each row."""
    for shares, labels in zip(values.tolist(), indices.tolist(), strict=True):
        yield [text for share, label in zip(shares, labels, strict=True) for text in (names[label], f"{share:.4f}")]
