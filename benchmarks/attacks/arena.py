"""A folder with tiny runs and datasets, copies of them for each attack, and how commands and functions are called."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import dovetail
from dovetail.cli import run as run_command
from dovetail.errors import DovetailError

MODEL = "timm/test_resnet+fpn"
RUN: dict[str, Any] = {
    "model": MODEL,
    "image_size": 64,
    "batch_size": 4,
    "max_steps": 1,
    "workers": 0,
    "precision": "32-true",
    "accelerator": "cpu",
    "report_every_minutes": 0.0,
    "recipe": {"hidden": 16, "dim": 8, "prototypes": 6, "decoder_grid": 8},
}
QUICK: dict[str, Any] = {"accelerator": "cpu", "precision": "float32", "workers": 0}
SIDE = 48
LONGEST_SENTENCE = 2000


class BrokenError(Exception):
    """A claim that does not hold; the text says what happened."""


@dataclass(frozen=True)
class Attack:
    """One attempt: `act` raises `BrokenError` where the claim does not hold."""

    claim: str
    name: str
    act: Callable[[Arena], None]


class Arena:
    """Attributes: `root` of everything, `here` for one attack alone, `made` that hostile code would make there."""

    def __init__(self, root: Path) -> None:
        self.root, self.here = root, root / "here"
        self.secret = root / "outside" / "secret.png"
        self.secret.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE), "red").save(self.secret)

    @property
    def made(self) -> Path:
        """What hostile code makes."""
        return self.here / "made"

    def clear(self) -> None:
        """Make the folder of an attack empty."""
        shutil.rmtree(self.here, ignore_errors=True)
        self.here.mkdir()

    @cached_property
    def photos(self) -> Path:
        """A folder of images."""
        folder = self.root / "photos"
        folder.mkdir()
        for index in range(4):
            noise(index).save(folder / f"{index}.png")
        return folder

    @cached_property
    def classes(self) -> Path:
        """A folder of images by class."""
        for split in ("train", "val"):
            for name in ("a", "b"):
                folder = self.root / "classes" / split / name
                folder.mkdir(parents=True)
                for index in range(2):
                    noise(index).save(folder / f"{index}.png")
        return self.root / "classes"

    @cached_property
    def masks(self) -> Path:
        """Images beside masks."""
        folder = self.root / "masks"
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
        for index in range(5):
            noise(index).save(folder / "images" / f"{index}.png")
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[:, : SIDE // 2] = 1
            Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
        return folder

    @cached_property
    def coco(self) -> Path:
        """A COCO file beside its images."""
        folder = self.root / "coco"
        folder.mkdir()
        for index in range(2):
            noise(index).save(folder / f"{index}.png")
        (folder / "coco.json").write_text(json.dumps(coco_content()))
        return folder / "coco.json"

    @cached_property
    def run(self) -> Path:
        """A finished pre-training run."""
        self.quietly(lambda: dovetail.pretrain(data=self.photos, out=self.root / "run", **RUN))
        return self.root / "run"

    @cached_property
    def tuned(self) -> dict[str, Path]:
        """Fine-tuned runs by task."""
        run, folder = self.run, self.root / "tuned"
        same = {"run": run, "steps": 1, "batch_size": 2, **QUICK}
        self.quietly(
            lambda: dovetail.finetune_classify(
                data=self.classes, out=folder / "classify", image_size=32, layer_decay=1.0, **same
            )
        )
        self.quietly(lambda: dovetail.finetune_segment(data=self.masks, out=folder / "segment", crop_size=32, **same))
        self.quietly(
            lambda: dovetail.finetune_detect(
                data=self.coco, out=folder / "detect", image_size=64, head_width=0.0625, proposals=8, **same
            )
        )
        return {task: folder / task for task in ("classify", "segment", "detect")}

    def copied(self, folder: Path) -> Path:
        """Return a copy of a folder for this attack."""
        return Path(shutil.copytree(folder, self.here / folder.name))

    def quietly(self, act: Callable[[], Any]) -> Any:
        """Do something whose words nobody reads."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return act()

    def command(self, *words: object, refused: bool | None = True) -> str:
        """Run a command line and return what it said.

        Args:
            words: Of the command line.
            refused: Whether it has to be refused with one sentence; None where it may as well be done.

        Raises:
            BrokenError: It is answered otherwise, with a traceback or with letters that a terminal acts on.
        """
        out, err = io.StringIO(), io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            warnings.simplefilter("ignore")
            code = run_command([str(word) for word in words])
        said, complaint = out.getvalue(), err.getvalue()
        if "Traceback" in said + complaint:
            raise BrokenError("a traceback is shown")
        if odd := next((letter for letter in said + complaint if is_acted_on(letter)), None):
            raise BrokenError(f"the terminal is sent {odd!a}")
        if code == 2:
            check_sentence(complaint.splitlines()[-1] if complaint else "", "dovetail: ")
        if code not in (0, 2) or (refused is not None and refused is not (code == 2)):
            raise BrokenError(f"the command ends with {code}")
        return said + complaint

    def call(self, act: Callable[[], Any], *, refused: bool | None = True) -> None:
        """Call a function: it has to end, or to raise a `DovetailError` of one sentence."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.quietly(act)
        except DovetailError as error:
            check_sentence(str(error), "")
            if refused is False:
                raise BrokenError(f"it is refused: {str(error)[:80]}") from None
            return
        if refused:
            raise BrokenError("it is taken")

    def resumed(self, run: Path, *words: object, refused: bool | None = True) -> None:
        """Resume a run."""
        self.command("pretrain", "--out", run, "--resume", *words, refused=refused)


def check_sentence(text: str, start: str) -> None:
    """Raise `BrokenError` for anything but one line of moderate length."""
    if not text.startswith(start) or not text.strip():
        raise BrokenError(f"it is told in no sentence but {text[:80]!r}")
    if "\n" in text.strip() or len(text) > LONGEST_SENTENCE:
        raise BrokenError(f"the sentence has {text.count(chr(10)) + 1} lines and {len(text)} letters")


def is_acted_on(letter: str) -> bool:
    """Whether a terminal does something else than to show a letter."""
    return letter not in "\n\t\r" and unicodedata.category(letter) in ("Cc", "Cf")


def noise(seed: int) -> Image.Image:
    """Return an image of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def coco_content() -> dict[str, Any]:
    """Return the content of a small COCO file."""
    square = [4, 4, 20, 4, 20, 20, 4, 20]
    common = {"category_id": 1, "bbox": [4, 4, 16, 16], "segmentation": [square], "area": 256, "iscrowd": 0}
    return {
        "images": [{"id": index, "file_name": f"{index}.png", "width": SIDE, "height": SIDE} for index in (0, 1)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": index + 1, "image_id": index, **common} for index in (0, 1)],
    }


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = str(made)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.made,)


def same_threads() -> None:
    """Compute on one core."""
    torch.set_num_threads(1)
