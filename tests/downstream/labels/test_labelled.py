"""Folders of images beside folders of masks, with their real quirks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from dovetail.data.reading.decode import open_bytes
from dovetail.downstream.labels.labelled import InMemory, read_image, read_mask
from dovetail.downstream.labels.readers import paired
from dovetail.errors import DovetailError
from tests.data.fuzz import png_of
from tests.data.photos import encoded, exif, smooth
from tests.data.reading.test_png import BAD_REMARKS

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
    data = paired(images, masks, classes=3)
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
    data = paired(images, masks, classes=3)
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
    data = paired(images, masks, classes=2)
    assert [int(data[index].mask.max()) for index in range(len(data))] == [1, 0]
    assert InMemory.of(data).subset([1])[0].mask.max() == 0


def test_image_without_mask_is_named(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    for stem in ("a", "b"):
        save_image(images / f"{stem}.jpg")
    save_mask(masks / "a.png")
    with pytest.raises(DovetailError, match=r"1 of 2 images .* have no mask .*b\.jpg; add b\.png"):
        paired(images, masks, classes=3)


def test_faults_names_every_bad_pair(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    for stem in ("beyond", "colour", "good", "size", "torn"):
        save_image(images / f"{stem}.png")
        save_mask(masks / f"{stem}.png")
    save_mask(masks / "beyond.png", np.full((3, 4), 9, dtype=np.uint8))
    Image.new("RGB", (4, 3), "navy").save(masks / "colour.png")
    save_image(images / "size.png", size=(5, 3))
    (masks / "torn.png").write_bytes((masks / "good.png").read_bytes()[:40])
    faults = list(paired(images, masks, classes=3).faults())
    assert len(faults) == 4
    assert "label 9 on 12 pixels" in faults[0]
    assert "is in colour (RGB)" in faults[1]
    assert "4x3 pixels, its image size.png 5x3" in faults[2]
    assert "torn.png cannot be read" in faults[3]


def test_missing_and_empty_folders(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    with pytest.raises(DovetailError, match=r"no folder .*other.* contains images, masks"):
        paired(images.parent / "other", masks, classes=3)
    (images / "readme.txt").write_text("x")
    with pytest.raises(DovetailError, match=r"contains no images, but: \.txt"):
        paired(images, masks, classes=3)


def test_two_files_of_one_stem(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    save_image(images / "a.png")
    save_image(images / "a.jpg")
    save_mask(masks / "a.png")
    with pytest.raises(DovetailError, match=r"both a\.jpg and a\.png"):
        paired(images, masks, classes=3)


JPEG = {"quality": 90}
ORDINARY = [("PNG", mode, {}) for mode in ("RGB", "L", "P", "1", "RGBA")] + [
    ("JPEG", "RGB", JPEG),
    ("JPEG", "RGB", JPEG | {"subsampling": 0}),
    ("JPEG", "RGB", JPEG | {"progressive": True}),
    ("JPEG", "L", JPEG),
    ("JPEG", "CMYK", JPEG),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("BMP", "RGB", {}),
    ("WEBP", "RGB", {}),
]


@pytest.mark.parametrize(("file_format", "mode", "options"), ORDINARY)
def test_ordinary_images_have_the_pixels_that_pillow_gives(
    file_format: str, mode: str, options: dict[str, object]
) -> None:
    for size in ((40, 60), (33, 17)):
        content = encoded(Image.fromarray(smooth(*size)).convert(mode), file_format, **options)
        pixels = read_image("a", content)
        assert pixels.is_contiguous()
        with Image.open(io.BytesIO(content)) as image:
            assert pixels.permute(1, 2, 0).tolist() == np.asarray(image.convert("RGB")).tolist()


def test_images_are_those_of_pretraining(tmp_path: Path) -> None:
    shades = smooth()[:, :, 0]
    clear = Image.fromarray(np.dstack([smooth(), np.where(shades > 99, 255, 0).astype(np.uint8)]))
    images = {
        "share.tif": Image.fromarray(shades / np.float32(255)),
        "small.tif": Image.fromarray(shades.astype(np.int32)),
        "deep.png": Image.fromarray(shades.astype(np.uint16) * 257),
        "clear.png": clear,
    }
    for name, image in images.items():
        image.save(tmp_path / name)
        expected = open_bytes((tmp_path / name).read_bytes(), 3).decode(1)
        assert read_image(tmp_path / name).equal(expected)
        assert expected[0][torch.from_numpy(shades > 99)].tolist() == shades[shades > 99].tolist()
    assert expected[:, torch.from_numpy(shades <= 99)].eq(255).all()
    Image.fromarray(shades.astype(np.int32) * 1000).save(tmp_path / "beyond.tif")
    with pytest.raises(DovetailError, match=r"beyond\.tif cannot be read as an image \(expected values in"):
        read_image(tmp_path / "beyond.tif")


def test_odd_tags_beside_a_rotation_do_no_harm() -> None:
    tags = exif((0x0100, 2, 4, b"abc\0"), (0x0112, 3, 1, b"\x06\0\0\0"))  # a width that is text
    content = encoded(Image.fromarray(smooth()), "JPEG", exif=tags)
    assert read_image("a", content).shape == (3, 60, 40)
    assert read_image("a", content, upright=False).shape == (3, 40, 60)


def test_masks_are_read_raw(tmp_path: Path) -> None:
    """Neither transparency nor depth changes a label; pixels that are too many are refused before they are made."""
    save_mask(tmp_path / "palette.png", palette=True)
    with Image.open(tmp_path / "palette.png") as mask:
        mask.save(tmp_path / "clear.png", transparency=1)
    Image.fromarray(LABELS.astype(np.int32) * 1000).save(tmp_path / "deep.tif")
    assert read_mask(tmp_path / "clear.png").tolist() == LABELS.tolist()
    assert read_mask(tmp_path / "deep.tif").tolist() == (LABELS.astype(int) * 1000).tolist()
    with pytest.raises(DovetailError, match=r"evil\.png cannot be read .* exceed the limit"):
        read_mask("evil.png", png_of(40000, 40000, bytes(10_000)))
    with pytest.raises(DovetailError, match=r"gone\.png"):
        read_mask(tmp_path / "gone.png")


def test_masks_of_several_pages_or_bands_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(LABELS), Image.fromarray(LABELS)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    tifffile.imwrite(tmp_path / "bands.tif", np.stack([LABELS] * 2, axis=2), photometric="minisblack", planarconfig=1)
    for name in ("pages", "bands"):
        with pytest.raises(DovetailError, match="has 2 bands or pages, but a mask has one label per pixel"):
            read_mask(tmp_path / f"{name}.tif")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("stored", [True, False])
def test_images_that_exif_turns_fit_masks_of_either_orientation(
    stored: bool, suffix: str, folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    images, masks = folders
    tags = Image.Exif()
    tags[0x0112] = 6
    pixels = np.zeros((16, 24, 3), np.uint8)  # as it is stored: 24 wide, bright at the left
    pixels[:, :8] = 250
    Image.fromarray(pixels).save(images / f"a.{suffix}", exif=tags)
    labels = np.zeros((16, 24), np.uint8)
    labels[:, :8] = 1
    save_mask(masks / "a.png", labels if stored else np.rot90(labels, -1).copy())
    image, mask = paired(images, masks, classes=2)[0]
    assert image.shape[1:] == mask.shape == ((16, 24) if stored else (24, 16))
    assert ((image[0] > 125) == (mask == 1)).float().mean() > 0.97
    assert ("The EXIF orientation of images" in caplog.text) == stored


def test_remarks_in_masks_cost_no_mask(tmp_path: Path) -> None:
    save_mask(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert read_mask("a.png", content[:33] + BAD_REMARKS["huge profile"] + content[33:]).tolist() == LABELS.tolist()
