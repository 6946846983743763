"""What `finetune segment --check` lists, and what masks are refused for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovetail.cli import run as run_command
from tests.downstream.labels.test_readers import voc
from tests.downstream.test_finetune import mask_folder


def test_check_reads_all_and_lists_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = mask_folder(tmp_path, images=5)
    Image.new("RGB", (48, 48), "navy").save(data / "masks" / "2.png")
    options = ["--data", str(data), "--out", str(tmp_path / "o"), "--classes", "3", "--check"]
    assert run_command(["finetune", "segment", *options]) == 2
    shown = capsys.readouterr()
    assert "2.png is in colour (RGB)" in shown.out
    assert "1 of 5 images has a problem" in shown.err
    for name in ("0.png", "4.png"):
        (data / "masks" / name).unlink()
    (data / "images" / "3.png").write_bytes(b"words")
    assert run_command(["finetune", "segment", *options]) == 2
    shown = capsys.readouterr()
    assert "0.png has no mask" in shown.out
    assert "4.png has no mask" in shown.out
    assert "2.png is in colour (RGB)" in shown.out
    assert "3.png cannot be read as an image" in shown.out
    told = "Missing 2 files, and 2 of 3 images have problems (listed above); add and correct them"
    assert told in shown.err


def test_check_lists_broken_masks_though_no_number_of_classes_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = mask_folder(tmp_path, images=5)
    Image.new("RGB", (48, 48), "navy").save(data / "masks" / "1.png")
    Image.new("L", (40, 48)).save(data / "masks" / "3.png")
    assert run_command(["finetune", "segment", "--data", str(data), "--out", str(tmp_path / "o"), "--check"]) == 2
    shown = capsys.readouterr()
    assert "1.png is in colour (RGB)" in shown.out
    assert "3.png is 40x48 pixels" in shown.out
    assert "2 of 5 images have problems (listed above); correct or remove them" in shown.err


@pytest.mark.parametrize(
    ("values", "sentence", "advice"),
    [
        (
            (0, 255),
            "contain only class 0 (ignored: 255)",
            "255 is ignored; if 255 marks a class, add --label-map 255:1",
        ),
        ((255, 255), "contain no labelled pixels", "255 is ignored; number the classes"),
    ],
)
def test_masks_with_nothing_to_tell_apart_are_refused_though_classes_are_given(
    values: tuple[int, int], sentence: str, advice: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = mask_folder(tmp_path / "data", images=5)
    for path in (data / "masks").iterdir():
        labels = np.full((48, 48), values[0], np.uint8)
        labels[:20] = values[1]
        Image.fromarray(labels).save(path)
    options = ["--data", str(data), "--out", str(tmp_path / "o"), "--classes", "2", "--model", "timm/test_resnet"]
    assert run_command(["finetune", "segment", *options, "--accelerator", "cpu", "--steps", "1"]) == 2
    assert sentence in capsys.readouterr().err
    assert run_command(["finetune", "segment", *options, "--check"]) == 2
    assert advice in capsys.readouterr().out


def test_check_lists_the_missing_files_of_both_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = voc(tmp_path) / "VOCdevkit" / "VOC2012"
    (root / "JPEGImages" / "2007_000032.jpg").unlink()
    (root / "SegmentationClass" / "2007_000039.png").unlink()
    assert run_command(["finetune", "segment", "--data", str(tmp_path), "--out", str(tmp_path / "o"), "--check"]) == 2
    shown = capsys.readouterr()
    assert "2007_000032.jpg is missing" in shown.out
    assert "2007_000039.png is missing" in shown.out
    assert "Missing 2 files" in shown.err
