"""The job behind `dovetail predict`."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dovetail.data.sources import find_images, read_list
from dovetail.errors import DovetailError, counted
from dovetail.transfer.augment import Augmentation
from dovetail.transfer.classifying import build_classifier
from dovetail.transfer.detect import as_coco, detect
from dovetail.transfer.detectors import DetectorSpec, build_detector
from dovetail.transfer.features import of_central_crops
from dovetail.transfer.finished import Task, load_weights, read_task
from dovetail.transfer.images import ClassFolder
from dovetail.transfer.labelled import read_image
from dovetail.transfer.machine import Machine, ahead, machine
from dovetail.transfer.progress import progress
from dovetail.transfer.ranges import check_ranges, check_writable
from dovetail.transfer.segment import predict as predict_classes
from dovetail.transfer.segment_options import SegmentOptions, Window
from dovetail.transfer.segmenters import FCNSpec, build_segmenter


def predict(asked: Mapping[str, Any]) -> Path:
    """Write predictions; `asked` are the parameters of the command."""
    for name, words in (("run", "fine-tuned run"), ("data", "folder of photographs"), ("out", "folder to write")):
        if not str(asked[name]):
            raise DovetailError(f"No {words} was named; give one with --{name}.")
    folder, out = Path(asked["run"]), Path(asked["out"])
    check_ranges(asked)
    check_writable(out)
    task = read_task(folder)
    where = machine(asked["accelerator"], asked["precision"], asked["workers"])
    base, paths = photographs(Path(asked["data"]))
    out.mkdir(parents=True, exist_ok=True)
    with progress(task.task, len(paths)) as advance:
        if task.task == "segment":
            segment(task, folder, base, paths, out, where, advance)
        elif task.task == "detect":
            detections(task, folder, base, paths, out, where, advance, asked["min_score"])
        else:
            classify(task, folder, base, paths, out, where, advance)
    print(f"{counted(len(paths), 'photograph')}, predictions in {out}")
    return out


def photographs(data: Path) -> tuple[Path, list[Path]]:
    """Return the folder that names are relative to, and the photographs.

    Raises:
        DovetailError: Where there are none.
    """
    if data.is_dir():
        paths = [Path(one) for one in find_images(data)]
        base = data
    elif data.is_file():
        paths = [Path(one) for one in read_list(data)]
        base = data.parent
    else:
        raise DovetailError(f"There is no folder or list of photographs at {data}; name one with --data.")
    if not paths:
        raise DovetailError(f"{data} holds no photographs; name another folder with --data.")
    return base, paths


def relative(path: Path, base: Path) -> Path:
    """Return a photograph's path below `base`, or its bare name where it is elsewhere."""
    return path.relative_to(base) if path.is_relative_to(base) else Path(path.name)


def segment(task: Task, folder: Path, base: Path, paths: list[Path], out: Path, where: Machine, advance: Any) -> None:
    """Write a palette PNG of classes for each photograph, and classes.json."""
    options = task.options
    model, _ = build_segmenter(
        task.source(),
        classes=len(task.names),
        decoder=options["decoder"],
        output_stride=options["output_stride"],
        fcn=FCNSpec(**options["fcn"]),
    )
    load_weights(model, folder)
    where.place(model).eval()
    red, green, blue = task.mean
    spread_red, spread_green, spread_blue = task.std
    how = SegmentOptions(
        classes=len(task.names),
        mean=(red, green, blue),
        std=(spread_red, spread_green, spread_blue),
        precision=where.precision,
        augmentation=Augmentation(within_px=tuple(options["within_px"]) if options["within_px"] else None),
        align_corners=options["align_corners"],
    )
    window = Window(*options["window"]) if options["window"] else None
    colours = palette(len(task.names))
    names = written_names(paths, base)
    for path, pixels in zip(paths, ahead(read_image, paths, threads=where.threads), strict=True):
        classes = predict_classes(model, pixels[None], how, window=window, device=where.device)[0]
        mask = Image.fromarray(classes.numpy().astype(np.uint8))
        mask.putpalette(colours)
        target = out / names[path]
        target.parent.mkdir(parents=True, exist_ok=True)
        mask.save(target)
        advance(1)
    (out / "classes.json").write_text(json.dumps(dict(enumerate(task.names)), indent=2) + "\n", encoding="utf-8")


def written_names(paths: list[Path], base: Path) -> dict[Path, Path]:
    """Return the PNG's name for each photograph: that below `base`, the suffix replaced; where several would have one
    name, the suffix is kept within it, and followed by a number where that is not enough.
    """
    plain = {path: relative(path, base).with_suffix(".png") for path in paths}
    counts = Counter(plain.values())
    names: dict[Path, Path] = {}
    taken = {name for name, count in counts.items() if count == 1}
    for path, name in plain.items():
        if counts[name] > 1:
            name = relative(path, base).with_name(path.name + ".png")
            number = 2
            while name in taken:
                name = name.with_name(f"{path.name}.{number}.png")
                number += 1
            taken.add(name)
        names[path] = name
    return names


def palette(classes: int) -> list[int]:
    """Return 256 colours as VOC has them: the bits of the class are dealt to red, green and blue."""
    if classes > 256:
        raise DovetailError(
            f"There are {classes} classes, but a palette PNG holds 256; read the model's logits yourself."
        )
    colours = []
    for index in range(256):
        value, colour = index, [0, 0, 0]
        for bit in range(7, -1, -1):
            for channel in range(3):
                colour[channel] |= ((value >> channel) & 1) << bit
            value >>= 3
        colours += colour
    return colours


def detections(
    task: Task, folder: Path, base: Path, paths: list[Path], out: Path, where: Machine, advance: Any, min_score: float
) -> None:
    """Write predictions.json: a list of file_name, category_id, category, bbox, score and, with masks, segmentation."""
    options = task.options
    spec = DetectorSpec(**{**options["spec"], "sides": tuple(options["spec"]["sides"])})
    model, _ = build_detector(task.source(), spec)
    load_weights(model, folder)
    where.place(model).eval()
    ids = tuple(int(one) for one in options["ids"])
    names = dict(zip(ids, task.names, strict=True))
    found: list[dict[str, Any]] = []
    for path, pixels in zip(paths, ahead(read_image, paths, threads=where.threads), strict=True):
        for entry in as_coco(detect(model, [pixels.float() / 255], where)[0], ids):
            if entry["score"] >= min_score:
                name = relative(path, base).as_posix()
                found.append({"file_name": name, "category": names[entry["category_id"]], **entry})
        advance(1)
    (out / "predictions.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


def classify(task: Task, folder: Path, base: Path, paths: list[Path], out: Path, where: Machine, advance: Any) -> None:
    """Write predictions.csv: file, and up to three pairs of class and probability, the best first."""
    model = build_classifier(task.source(), len(task.names))
    load_weights(model, folder)
    data = ClassFolder(tuple(paths), (0,) * len(paths), task.names)
    logits = of_central_crops(model, data, **task.source().pixels(), machine=where, on_batch=advance)
    best = logits.softmax(1).topk(min(3, len(task.names)), dim=1)
    with (out / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        header = [f"{word}{rank + 1}" for rank in range(best.indices.shape[1]) for word in ("class", "probability")]
        writer.writerow(["file", *header])
        for path, row in zip(paths, rows_of(best.values, best.indices, task.names), strict=True):
            writer.writerow([relative(path, base).as_posix(), *row])


def rows_of(values: torch.Tensor, indices: torch.Tensor, names: tuple[str, ...]) -> Iterator[list[str]]:
    """Yield class and probability in turn for each row."""
    for shares, labels in zip(values.tolist(), indices.tolist(), strict=True):
        yield [text for share, label in zip(shares, labels, strict=True) for text in (names[label], f"{share:.4f}")]
