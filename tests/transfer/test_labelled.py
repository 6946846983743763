"""Folders of images beside folders of masks, with their real quirks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dovetail.errors import DovetailError
from dovetail.transfer.labelled import InMemory, MaskFolder, Subset

LABELS = np.array([[0, 1, 2, 255], [2, 1, 0, 0], [1, 1, 1, 1]], dtype=np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    return images, masks


def save_image(path: Path, size: tuple[int, int] = (4, 3), mode: str = "RGB") -> None:
    Image.new(mode, size).save(path)


def save_mask(path: Path, labels: np.ndarray = LABELS, *, palette: bool = False) -> None:
    mask = Image.fromarray(labels)
    if palette:
        mask = mask.convert("P")
        mask.putdata(labels.flatten().tolist())
        mask.putpalette([value for index in range(256) for value in (255 - index, index, 7)])
    mask.save(path)


@pytest.mark.parametrize("palette", [False, True])
def test_grey_and_palette_masks_hold_the_labels(folders: tuple[Path, Path], palette: bool) -> None:
    images, masks = folders
    save_image(images / "a.jpg")
    save_mask(masks / "a.png", palette=palette)
    data = MaskFolder.open(images, masks, classes=3)
    assert len(data) == 1
    item = data[0]
    assert item.image.shape == (3, 3, 4)
    assert item.image.dtype == torch.uint8
    assert item.mask.dtype == torch.int64
    assert item.mask.tolist() == LABELS.tolist()


def test_bitmap_and_16_bit_masks_and_grey_16_bit_images(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    Image.fromarray(np.full((3, 4), 40000, dtype=np.uint16)).save(images / "a.png")
    save_image(images / "b.png", mode="RGBA")
    Image.fromarray(LABELS == 1).save(masks / "a.png")
    Image.fromarray(LABELS.astype(np.uint16)).save(masks / "b.png")
    data = MaskFolder.open(images, masks, classes=3)
    assert data[0].mask.tolist() == (LABELS == 1).astype(int).tolist()
    assert data[0].image.unique().tolist() == [40000 >> 8]
    assert data[1].mask.tolist() == LABELS.tolist()


def test_pairs_match_by_stem_and_spare_masks_are_left(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    for index, stem in enumerate(("b", "a")):
        save_image(images / f"{stem}.png")
        save_mask(masks / f"{stem}.png", np.full((3, 4), index, dtype=np.uint8))
    save_mask(masks / "spare.png")
    (images / "notes.txt").write_text("not an image")
    data = MaskFolder.open(images, masks, classes=2)
    assert [int(data[index].mask.max()) for index in range(len(data))] == [1, 0]
    assert Subset(InMemory.of(data), (1,))[0].mask.max() == 0


def test_image_without_mask_is_named(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    for stem in ("a", "b"):
        save_image(images / f"{stem}.jpg")
    save_mask(masks / "a.png")
    with pytest.raises(DovetailError, match=r"1 of 2 images .* have no mask .*b\.jpg; add b\.png"):
        MaskFolder.open(images, masks, classes=3)


def test_faults_names_every_bad_pair(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    for stem in ("beyond", "colour", "good", "size", "torn"):
        save_image(images / f"{stem}.png")
        save_mask(masks / f"{stem}.png")
    save_mask(masks / "beyond.png", np.full((3, 4), 9, dtype=np.uint8))
    save_image(masks / "colour.png")
    save_image(images / "size.png", size=(5, 3))
    (masks / "torn.png").write_bytes((masks / "good.png").read_bytes()[:40])
    faults = list(MaskFolder.open(images, masks, classes=3).faults())
    assert len(faults) == 4
    assert "label 9 on 12 pixels" in faults[0]
    assert "mode RGB" in faults[1]
    assert "4x3 pixels, its image size.png 5x3" in faults[2]
    assert "torn.png cannot be read" in faults[3]


def test_missing_and_empty_folders(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    with pytest.raises(DovetailError, match=r"no folder .*other.* holds images, masks"):
        MaskFolder.open(images.parent / "other", masks, classes=3)
    (images / "readme.txt").write_text("x")
    with pytest.raises(DovetailError, match=r"holds no images; found there: \.txt"):
        MaskFolder.open(images, masks, classes=3)


def test_two_files_of_one_stem(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    save_image(images / "a.png")
    save_image(images / "a.jpg")
    save_mask(masks / "a.png")
    with pytest.raises(DovetailError, match=r"both a\.jpg and a\.png"):
        MaskFolder.open(images, masks, classes=3)
