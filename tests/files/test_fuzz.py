"""Any content of the files that are read: a value comes out, or one sentence, soon and within bounded memory.

`make test` draws few examples of each, and `make test-all` many; both the same ones each time.
"""

from __future__ import annotations

import copy
import io
import json
import resource
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dovetail.data.open import open_source
from dovetail.data.reading.decode import UnreadableError
from dovetail.downstream.finished import read_task
from dovetail.downstream.labels.coco import CocoSet, faults_of
from dovetail.downstream.rebuilt import build_finished
from dovetail.errors import DovetailError
from dovetail.files.options_file import read_options_file
from dovetail.files.sidecar import normalisation_in, read_sidecar
from dovetail.report.history import read_history
from dovetail.run.folder import saved_options
from dovetail.train.logs import drop_readings_after
from tests.data.tars import jpeg

FEW, MANY = 12, 300
SECONDS = 1500  # against hanging alone: an example takes milliseconds
MEMORY_BYTES = 1 << 30
LONGEST = 2000
MODEL = "timm.create_model('test_resnet')"

CONFIG = {
    "data": "photos", "model": "timm/test_resnet+fpn", "method": "decon-sl", "preset": "auto", "epochs": 3,
    "recipe": {"hidden": 16, "alpha": 0.5, "levels": "finest", "warmup_epochs": 1.0}, "image_size": 64, "lr": 0.1,
    "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "max_steps": None, "seed": 0, "resume": False,
}  # fmt: skip
TASKS: list[dict[str, Any]] = [
    {
        "task": task, "constructor": MODEL, "names": ["a", "b"], "mean": [0.5] * 3, "std": [0.2] * 3,
        "image_size": 64, "in_channels": 3, "value_range": [0, 4095], "options": options,
    }
    for task, options in (
        ("classify", {}),
        ("segment", {
            "decoder": "fcn", "output_stride": 32, "window": [32, 16], "within_px": None, "align_corners": False,
            "fcn": {"channels": 8, "dilation": 1, "concat": False, "dropout": 0.1, "auxiliary": False},
        }),
        ("detect", {
            "ids": [1, 2],
            "spec": {"task": "boxes", "head": "retinanet", "classes": 2, "sides": [64], "longest": 100},
        }),
    )
]  # fmt: skip
COCO = {
    "images": [{"id": 1, "file_name": "0.png", "width": 32, "height": 32}],
    "categories": [{"id": 7, "name": "thing"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [4, 4, 8, 8], "area": 64, "iscrowd": 0,
         "segmentation": [[4, 4, 12, 4, 12, 12, 4, 12]]},
        {"id": 2, "image_id": 1, "category_id": 7, "segmentation": {"size": [32, 32], "counts": [500, 24, 500]}},
    ],
}  # fmt: skip
READING = {
    "step": 3, "epoch": 0, "loss": 1.5, "parts": {"encoder/slot": 1.0}, "weights": {"encoder": 1.0}, "lr": 0.1,
    "weight_decay": 0.0, "teacher_momentum": None, "grad_norm": 1.0, "images_per_second": 9.0, "data_wait": 0.1,
    "effective_rank": {"c5": 3.0}, "spread": {"c5": 0.5}, "within_image_share": {"p2": 0.5},
    "position_share": {"p2": 0.1}, "prototypes_used": {"encoder": 9.0}, "teacher_entropy": {"encoder": 0.5},
}  # fmt: skip
SIDECAR = {
    "format": 1, "constructor": MODEL, "encoder_prefix": "", "decoder_prefixes": ["fpn"], "untrained": ["fc.weight"],
    "in_channels": 3, "image_size": 64, "normalisation": {"mean": [0.5] * 3, "std": [0.2] * 3},
    "extra": {"value_range": [0, 4095], "steps": 3},
}  # fmt: skip

numbers = st.sampled_from([0, -1, 1, 3, 255, 2**31, 2**63, 10**30, 10**400, 0.5, 1e308, float("nan"), float("inf")])
texts = st.text(max_size=12) | st.sampled_from(["\x1b[2J", "../x", "/etc/passwd", "[" * 3000, "x" * 20_000, "auto"])
leaves = st.none() | st.booleans() | numbers | st.integers() | st.floats() | texts
odd = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)


def places_in(content: Any) -> list[tuple[Any, Any]]:
    """Return every dictionary or list within a content with each of its keys."""
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    return [pair for key in keys for pair in [(content, key), *places_in(content[key])]]


@st.composite
def changed(draw: st.DrawFn, originals: list[Any]) -> Any:
    """Draw one of the contents with one to three of its values replaced, moved, or gone."""
    content = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        places = places_in(content)
        if not places:
            return draw(odd)
        inside, key = places[draw(st.integers(0, len(places) - 1))]
        if draw(st.integers(0, 5)) == 0:
            del inside[key]
        else:
            inside[key] = draw(odd | st.just([copy.deepcopy(inside[key])]) | st.just({"x": inside[key]}))
    return content


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Draw bytes as they are, cut, with a stretch replaced, or something else altogether."""
    content = draw(whole)
    place = draw(st.integers(0, len(content)))
    kind = draw(st.integers(0, 6))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + draw(st.binary(max_size=40)) + content[place + draw(st.integers(0, 40)) :]
    if kind == 2:
        return draw(st.binary(max_size=200))
    return content


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


def as_yaml(content: Any) -> bytes:
    return yaml.safe_dump(content, allow_unicode=False).encode("utf-8", "surrogatepass")


@contextmanager
def bounded() -> Iterator[None]:
    """Let nothing within hang, or take more memory than it may."""

    def hanging(*_: object) -> None:
        raise AssertionError(f"it took more than {SECONDS} seconds")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, hanging)
    signal.alarm(SECONDS)
    if sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def config(folder: Path, content: bytes) -> None:
    (folder / "config.yaml").write_bytes(content)
    saved_options(folder)


def options(folder: Path, content: bytes) -> None:
    (folder / "options.yaml").write_bytes(content)
    read_options_file(folder / "options.yaml")


def task(folder: Path, content: bytes) -> None:
    (folder / "task.json").write_bytes(content)
    with torch.device("meta"):
        build_finished(read_task(folder))


def coco(folder: Path, content: bytes) -> None:
    if not (folder / "0.png").exists():
        Image.new("RGB", (32, 32)).save(folder / "0.png")
    (folder / "coco.json").write_bytes(content)
    listed = faults_of(folder / "coco.json")
    assert all("\n" not in sentence and len(sentence) < LONGEST for sentence in listed)
    found = CocoSet.open(folder / "coco.json")
    list(found.faults())


def shard(folder: Path, content: bytes) -> None:
    (folder / "photos-000.tar").write_bytes(content)
    read_images(folder)


def sizes(folder: Path, content: bytes) -> None:
    (folder / "photos-000.tar").write_bytes(TAR)
    (folder / "sizes.json").write_bytes(content)
    open_source(folder)


def read_images(folder: Path) -> None:
    source = open_source(folder)
    for index in range(min(source.num_images, 4)):
        with suppress(UnreadableError):  # the image is skipped
            source.open(index, 3).decode(1)


def metrics(folder: Path, content: bytes) -> None:
    (folder / "metrics.jsonl").write_bytes(content)
    history = read_history(folder)
    for name in READING:
        history.group(name) if isinstance(READING[name], dict) else history.number(name)
    history.verdicts(["c5"])
    history.content_verdicts(10)
    history.prototype_verdicts(10)
    drop_readings_after(folder / "metrics.jsonl", 5)
    assert read_history(folder).readings == tuple(one for one in history.readings if one["step"] <= 5)


def sidecar(folder: Path, content: bytes) -> None:
    (folder / "model.json").write_bytes(content)
    normalisation_in(read_sidecar(folder / "model.json"), 3)


def tar_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(2):
            info = tarfile.TarInfo(f"{number:05}.jpg")
            info.size = len(jpeg(number))
            tar.addfile(info, io.BytesIO(jpeg(number)))
    return buffer.getvalue()


TAR = tar_bytes()
LINES = st.lists(changed([READING, {**READING, "step": 7}]).map(as_json), max_size=4).map(b"\n".join)
TARGETS: dict[str, tuple[Callable[[Path, bytes], None], st.SearchStrategy[bytes]]] = {
    "config.yaml": (config, damaged(changed([CONFIG]).map(as_yaml))),
    "any options": (options, damaged((changed([CONFIG]) | odd).map(as_yaml))),
    "task.json": (task, damaged(changed(TASKS).map(as_json))),
    "COCO": (coco, damaged(changed([COCO]).map(as_json))),
    "shards": (shard, damaged(st.just(TAR))),
    "sizes.json": (sizes, damaged(changed([{"photos-000.tar": 2}]).map(as_json))),
    "metrics.jsonl": (metrics, damaged(LINES)),
    "model.json": (sidecar, damaged(changed([SIDECAR]).map(as_json))),
}


def fuzz(name: str, folder: Path, count: int) -> None:
    """Try so many contents of a file."""
    act, contents = TARGETS[name]

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(contents)
    def attempt(content: bytes) -> None:
        try:
            with bounded():
                act(folder, content)
        except DovetailError as error:
            text = str(error)
            assert text.strip()
            assert "\n" not in text.strip()
            assert len(text) < LONGEST

    attempt()


@pytest.mark.parametrize("name", TARGETS)
def test_any_content_gives_a_value_or_a_sentence(name: str, tmp_path: Path) -> None:
    fuzz(name, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_many_contents_give_a_value_or_a_sentence(name: str, tmp_path: Path) -> None:
    fuzz(name, tmp_path, MANY)


@pytest.mark.parametrize("name", TARGETS)
def test_the_whole_content_is_taken(name: str, tmp_path: Path) -> None:
    """What the fuzzer changes is read without a complaint before it is changed."""
    whole: dict[str, bytes] = {
        "config.yaml": as_yaml(CONFIG), "any options": as_yaml(CONFIG), "task.json": as_json(TASKS[1]),
        "COCO": as_json(COCO), "shards": TAR, "sizes.json": as_json({"photos-000.tar": 2}),
        "metrics.jsonl": as_json(READING), "model.json": as_json(SIDECAR),
    }  # fmt: skip
    TARGETS[name][0](tmp_path, whole[name])
