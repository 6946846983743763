"""Class folders are read as they come; crops have the protocol's geometry; faults name the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovetail.downstream.labels.images import ClassFolder, central, open_splits, random_crop
from dovetail.errors import DovetailError
from tests.downstream.pictures import class_folder


def test_splits_share_the_classes_of_the_training_images(tmp_path: Path) -> None:
    data = class_folder(tmp_path, train=2, val=1)
    for path in (data / "val" / "n00000001").iterdir():
        path.unlink()
    (data / "train" / ".cache").mkdir()
    train, held_out, _ = open_splits(data)
    assert (len(train), len(held_out)) == (6, 2)
    assert held_out.names == train.names == ("n00000000", "n00000001", "n00000002")
    assert held_out.labels == (0, 2)


def test_an_unknown_class_and_a_missing_split_are_named(tmp_path: Path) -> None:
    data = class_folder(tmp_path)
    (data / "val" / "tench").mkdir()
    with pytest.raises(DovetailError, match="'tench'"):
        open_splits(data)
    (data / "val").rename(data / "holdout")
    with pytest.raises(DovetailError, match="val, valid, validation or test"):
        open_splits(data)
    with pytest.raises(DovetailError, match="nowhere"):
        ClassFolder.find(tmp_path / "nowhere")


def test_other_folders_and_a_single_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match=r"no folder .*train; .* lie in train/CLASS/ and val/CLASS/"):
        open_splits(tmp_path)
    with pytest.raises(DovetailError, match=r"train has only the class 'n00000000'"):
        open_splits(class_folder(tmp_path, classes=1))


def test_faults_name_every_broken_file(tmp_path: Path) -> None:
    train, _, _ = open_splits(class_folder(tmp_path))
    assert list(train.faults()) == []
    train.paths[3].write_bytes(b"no image")
    train.paths[5].write_bytes(train.paths[5].read_bytes()[:150])
    faults = list(train.faults())
    assert len(faults) == 2
    assert str(train.paths[3]) in faults[0]
    assert str(train.paths[5]) in faults[1]


def alone(path: Path) -> ClassFolder:
    return ClassFolder((path,), (0,), ("a",))


def test_the_central_crop_is_7_8_of_the_shorter_side(tmp_path: Path) -> None:
    values = np.zeros((64, 128, 3), np.uint8)
    values[4:60, 36:92] = 255  # the central 7/8 of 64
    Image.fromarray(values).save(tmp_path / "a.png")
    crop = central(alone(tmp_path / "a.png"), 0, channels=3, size=56)
    assert crop.shape == (3, 56, 56)
    assert int(crop.min()) > 250
    outer = central(alone(tmp_path / "a.png"), 0, channels=3, size=28)
    assert outer.shape == (3, 28, 28)


def test_random_crops_follow_their_generator(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(tmp_path / "a.png")
    first, again, other = (
        random_crop(alone(tmp_path / "a.png"), 0, np.random.default_rng(seed), channels=3, size=16)
        for seed in (1, 1, 2)
    )
    assert first.shape == (3, 16, 16)
    assert bool((first == again).all())
    assert not bool((first == other).all())


def test_links_are_followed_and_other_files_are_counted(tmp_path: Path) -> None:
    data = class_folder(tmp_path / "set")
    shelf = tmp_path / "elsewhere"
    (data / "train" / "n00000000").rename(shelf)
    (data / "train" / "n00000000").mkdir()
    (data / "train" / "n00000000" / "deep").symlink_to(shelf)
    (data / "train" / "n00000001" / "more").symlink_to(shelf)
    (data / "train" / "n00000001" / "phone.heic").write_bytes(b"ftypheic")
    (data / "val" / "n00000002" / "about.txt").write_text("text")
    train, held_out, note = open_splits(data)
    assert [train.labels.count(label) for label in range(3)] == [8, 16, 8]
    assert len(held_out) == 12
    assert "Skipped 1 .heic file (not supported as images) in train." in note
    assert "1 .txt file" in note
