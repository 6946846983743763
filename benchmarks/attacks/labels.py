"""Attacks by files of labels, tasks and results."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dovetail
from benchmarks.attacks import claims
from benchmarks.attacks.arena import SIDE, Arena, Attack, coco_content
from benchmarks.attacks.weights import CALLS, TEXTS
from dovetail.data.identity import read_identity
from dovetail.downstream.labels.coco import CocoSet
from dovetail.downstream.table.results import read_results

NAMES = (
    "/etc/passwd",
    "../outside/secret.png",
    "a/../../outside/secret.png",
    "C:\\secret.png",
    "..\\secret.png",
    "SECRET",
    "//server/secret.png",
    "./../../outside/secret.png",
    "0.png/../../outside/secret.png",
    "file:///etc/passwd",
    "..",
)
ODD: tuple[Any, ...] = (None, -7, 10**30, "x", 1.5, [], {}, [[1]], {"a": 1}, 1e308, True, float("nan"))
COCO_FIELDS = (
    ("images", "id"),
    ("images", "file_name"),
    ("images", "width"),
    ("images", "height"),
    ("categories", "id"),
    ("categories", "name"),
    ("annotations", "id"),
    ("annotations", "image_id"),
    ("annotations", "category_id"),
    ("annotations", "bbox"),
    ("annotations", "segmentation"),
    ("annotations", "area"),
    ("annotations", "iscrowd"),
)
MASKS: tuple[Any, ...] = (
    {"size": [1_000_000, 1_000_000], "counts": [10**12]},
    {"size": [1_000_000, 1_000_000], "counts": "0" * 40},
    {"size": [1 << 31, 1 << 31], "counts": [1]},
    {"size": [-1, -1], "counts": [1]},
    {"size": [0, 0], "counts": []},
    {"size": [SIDE, SIDE], "counts": [10**12]},
    {"size": [SIDE, SIDE], "counts": [-1, 5]},
    {"size": [SIDE, SIDE], "counts": "\udc80"},
    {"size": [SIDE, SIDE], "counts": "~" * 5000},
    {"size": [], "counts": 3},
    {"size": [SIDE, SIDE], "counts": [1.5]},
    {"size": [SIDE, SIDE], "counts": {"a": 1}},
    {"counts": [1]},
)
TASK_FIELDS = ("task", "constructor", "names", "mean", "std", "image_size", "in_channels", "options", "value_range")
TASK_ODD: tuple[Any, ...] = (*ODD, [], ["x"], "\x1b[2J", [1, 2, 3], ["a"] * 100_000)
RESULT_FIELDS = ("task", "rows", "config", "data", "device", "notes", "versions")
ROWS: tuple[Any, ...] = (
    [3],
    [{}],
    [{"setting": 3, "scores": {}}],
    [{"setting": {}, "scores": 3}],
    [{"setting": {}, "scores": {"a": {}}}],
    [
        {
            "setting": {"a": {"b": [1]}},
            "scores": {"a": {"mean": "x", "values": 3, "deviation": [], "low": {}, "high": 1}},
        }
    ],
    [
        {
            "setting": {"\x1b[2J": "\x1b[2J"},
            "scores": {"\x07": {"mean": 1, "values": [], "deviation": None, "low": None, "high": None}},
        }
    ],
    [{"setting": {}, "scores": {"a": {"mean": 1e308, "values": ["x"], "deviation": "x", "low": "x", "high": "x"}}}],
    [{"setting": {}, "scores": {"a": {"mean": None, "values": [1], "deviation": 1, "low": 1, "high": 1}}}],
)


def attacks() -> Iterator[Attack]:
    """Yield all attacks of this module."""
    for name in NAMES:
        yield Attack(claims.COCO_OUTSIDE, name, partial(coco_named, name))
    for number, mask in enumerate(MASKS):
        yield Attack(claims.COCO_MASKS, f"mask {number}", partial(coco_changed, "annotations", {"segmentation": mask}))
    for key, field in COCO_FIELDS:
        for value in ODD:
            act = partial(coco_changed, key, {field: value}, refused=None)
            yield Attack(claims.COCO, f"{key}.{field}: {str(value)[:20]!r}", act)
    for key in ("images", "categories", "annotations"):
        for value in ODD:
            yield Attack(claims.COCO, f"{key}: {str(value)[:20]!r}", partial(coco_list, key, value))
    for text in TEXTS:
        claim = claims.NESTING if len(text) > 1000 else claims.COCO
        yield Attack(claim, f"COCO file: {text[:20]!r}", partial(whole_file, "coco.json", text))
        yield Attack(claims.NESTING, f"results.json: {text[:20]!r}", partial(whole_file, "results.json", text))
        yield Attack(claims.NESTING, f"data.json: {text[:20]!r}", partial(whole_file, "data.json", text))
        yield Attack(claims.TASK, f"the whole file: {text[:20]!r}", partial(whole_file, "task.json", text))
    yield from of_tasks()
    for field in RESULT_FIELDS:
        for value in (*ODD, *(ROWS if field == "rows" else ())):
            yield Attack(claims.RESULTS, f"{field}: {str(value)[:40]!r}", partial(compared, field, value))


def of_tasks() -> Iterator[Attack]:
    """Yield attacks by the `task.json` of a fine-tuned run."""
    for field in TASK_FIELDS:
        for value in TASK_ODD:
            act = partial(task_changed, "classify", {field: value}, refused=None)
            yield Attack(claims.TASK, f"{field}: {str(value)[:20]!r}", act)
        yield Attack(claims.TASK, f"without {field}", partial(task_changed, "classify", {field: ...}, refused=None))
    for task, names in (("segment", SEGMENT_OPTIONS), ("detect", DETECT_OPTIONS)):
        for name in names:
            for value in ODD:
                yield Attack(
                    claims.TASK, f"{task} {name}: {str(value)[:20]!r}", partial(option_changed, task, name, value)
                )
    for call in CALLS:
        yield Attack(
            claims.TASK, f"constructor {call[:50]!r}", partial(task_changed, "classify", {"constructor": call})
        )
    yield Attack(claims.TASK, "another task's weights", partial(task_changed, "classify", {"task": "segment"}))


SEGMENT_OPTIONS = ("decoder", "output_stride", "fcn", "window", "within_px", "align_corners")
DETECT_OPTIONS = ("spec", "ids")


def read_coco(arena: Arena, content: Any, *, refused: bool | None) -> None:
    """Read a content as a COCO file with the arena's images, its masks too."""
    folder = arena.copied(arena.coco.parent)
    (folder / "coco.json").write_text(content if isinstance(content, str) else json.dumps(content))

    def read() -> None:
        for image in CocoSet.open(folder / "coco.json").images:
            image.pixels()
            for one in image.objects:
                one.mask(image.height, image.width)

    arena.call(read, refused=refused)


def coco_named(name: str, arena: Arena) -> None:
    """Name an image elsewhere."""
    content = coco_content()
    content["images"][0]["file_name"] = name.replace("SECRET", str(arena.secret))
    read_coco(arena, content, refused=True)


def coco_changed(key: str, values: dict[str, Any], arena: Arena, *, refused: bool | None = True) -> None:
    """Change fields of the first image, category or annotation; a mask's size is its image's."""
    content = coco_content()
    content[key][0].update(values)
    mask = values.get("segmentation")
    if isinstance(mask, dict) and isinstance(mask.get("size"), list) and len(mask["size"]) == 2:
        content["images"][0]["height"], content["images"][0]["width"] = mask["size"]
    read_coco(arena, content, refused=refused)


def coco_list(key: str, value: Any, arena: Arena) -> None:
    """Put something else in the place of a list, and among its entries."""
    read_coco(arena, {**coco_content(), key: value}, refused=None)
    arena.clear()
    content = coco_content()
    content[key].append(value)
    read_coco(arena, content, refused=None)


def whole_file(name: str, text: str, arena: Arena) -> None:
    """Write a text as the whole file, and give it to what reads it."""
    if name == "coco.json":
        read_coco(arena, text, refused=True)
    elif name == "task.json":
        run = arena.copied(arena.tuned["classify"])
        (run / name).write_text(text)
        arena.call(lambda: dovetail.load(run))
    else:
        (arena.here / name).write_text(text)
        readers: dict[str, Callable[[Path], Any]] = {"results.json": read_results, "data.json": read_identity}
        arena.call(lambda: readers[name](arena.here), refused=name == "results.json" or None)


def task_changed(task: str, values: dict[str, Any], arena: Arena, *, refused: bool | None = True) -> None:
    """Say something odd of a fine-tuned model, to whoever loads it and predicts with it."""
    run = arena.copied(arena.tuned[task])
    content = json.loads((run / "task.json").read_text()) | values
    told = {name: value for name, value in content.items() if value is not ...}
    if isinstance(told.get("constructor"), str):
        told["constructor"] = told["constructor"].replace("MADE", str(arena.made)).replace("SECRET", str(arena.secret))
    (run / "task.json").write_text(json.dumps(told))
    arena.call(lambda: dovetail.load(run), refused=refused)
    arena.command(
        *("predict", "--run", run, "--data", arena.photos, "--out", arena.here / "out", "--accelerator", "cpu"),
        *("--workers", 0),
        refused=refused,
    )


def option_changed(task: str, name: str, value: Any, arena: Arena) -> None:
    """Say something odd among a task's options."""
    options = json.loads((arena.tuned[task] / "task.json").read_text())["options"]
    task_changed(task, {"options": {**copy.deepcopy(options), name: value}}, arena, refused=None)


def compared(field: str, value: Any, arena: Arena) -> None:
    """Compare results that say something odd."""
    content: dict[str, Any] = {
        "format": 1,
        "task": "evaluate knn",
        "rows": [],
        "config": {"seed": 0},
        "seed": 0,
        "versions": {},
        "device": "cpu",
        "data": {"fingerprint": "0"},
        "notes": [],
        "details": {},
    }
    (arena.here / "results.json").write_text(json.dumps(content | {field: value}))
    arena.command("compare", arena.here, refused=None)
    arena.command("compare", arena.here, "--out", arena.here / "x.html", refused=None)
