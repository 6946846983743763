"""DICOM images."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dovetail.data.open import open_source
from dovetail.data.reading.decode import UnreadableError, open_bytes
from dovetail.data.reading.recognise import looks_like_image
from dovetail.data.reading.values import all_levels, raw_values, values_within
from dovetail.data.shards.write import write_shards
from tests.data.photos import encoded, smooth

pydicom = pytest.importorskip("pydicom")
GREY = np.arange(20 * 25, dtype=np.uint16).reshape(20, 25) * 8


def dicom_of(array: np.ndarray, *, frames: int = 1, **header: Any) -> bytes:
    """Return frames [N, H, W] or one frame [H, W] or [H, W, 3] as a DICOM file."""
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = header.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    made.SOPClassUID = pydicom.uid.CTImageStorage
    made.SOPInstanceUID = pydicom.uid.generate_uid()
    made.Rows, made.Columns = array.shape[1:3] if frames > 1 else array.shape[:2]
    made.SamplesPerPixel = 3 if array.ndim == 3 and frames == 1 else 1
    if made.SamplesPerPixel == 3:
        made.PlanarConfiguration = 0
    if frames > 1:
        made.NumberOfFrames = frames
    made.PhotometricInterpretation = "RGB" if made.SamplesPerPixel == 3 else "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = array.dtype.itemsize * 8
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(array.dtype.kind == "i")
    made.PixelData = header.pop("pixels", array.tobytes())
    for name, value in header.items():
        setattr(made, name, value)
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def raw(content: bytes, channels: int = 1) -> np.ndarray:
    """Return the values of the first channel as they are in the file."""
    with raw_values():
        return open_bytes(content, channels).decode(1)[0].numpy()


def test_stored_values_and_those_of_the_header() -> None:
    assert looks_like_image(dicom_of(GREY)[:132])
    assert np.array_equal(raw(dicom_of(GREY)), GREY)
    signed = GREY.astype(np.int16) - 1024
    assert np.array_equal(raw(dicom_of(signed)), signed)
    hounsfield = raw(dicom_of(GREY, RescaleSlope="2", RescaleIntercept="-1024"))
    assert hounsfield.dtype == np.int32
    assert np.array_equal(hounsfield, GREY.astype(int) * 2 - 1024)
    assert np.allclose(raw(dicom_of(GREY, RescaleSlope="0.5", RescaleIntercept="1")), GREY * 0.5 + 1)
    inverted = dicom_of(GREY, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(raw(inverted), 4095 - GREY)
    assert np.array_equal(raw(dicom_of(signed, PhotometricInterpretation="MONOCHROME1")), -1 - signed)


def test_all_levels_and_three_channels() -> None:
    content = dicom_of(GREY, RescaleSlope="1", RescaleIntercept="-1024")
    with values_within([-1024, 3000]), all_levels():
        kept = open_bytes(content, 3).decode(1)
    assert kept.shape == (3, 20, 25)
    assert len(kept.unique()) == 500
    with pytest.raises(UnreadableError, match="got -1024 to 2968; specify --value-range"):
        open_bytes(content, 3)


def test_eight_bits_colours_and_frames() -> None:
    assert open_bytes(dicom_of(smooth()), 3).decode(1).equal(torch.from_numpy(smooth()).permute(2, 0, 1))
    assert np.array_equal(raw(dicom_of(np.stack([GREY, GREY + 1]), frames=2)), GREY)
    jpeg = encoded(Image.fromarray(smooth()[:, :, 0].copy()), "JPEG", quality=95)
    packed = pydicom.encaps.encapsulate([jpeg])
    content = dicom_of(smooth()[:, :, 0], syntax=pydicom.uid.JPEGBaseline8Bit, pixels=packed)
    decoded = open_bytes(content, 1).decode(1)[0].float().numpy()
    assert np.abs(decoded - smooth()[:, :, 0]).mean() < 4


def test_a_folder_of_files_without_suffixes(tmp_path: Path) -> None:
    (tmp_path / "in" / "series").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "in" / "series" / f"IM{number}").write_bytes(dicom_of(GREY + number))
    (tmp_path / "in" / "notes.txt").write_text("text")
    source = open_source(tmp_path / "in")
    assert source.num_images == 3
    write_shards(source, tmp_path / "shards", images_per_shard=2)
    shards = open_source(tmp_path / "shards")
    with raw_values():
        found = {int(shards.open(index, 1).decode(1).numpy().min()) for index in range(3)}
    assert found == {0, 1, 2}


def test_hostile_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    small = np.zeros((2, 2), np.uint8)
    fragment = pydicom.encaps.encapsulate([b"\xff\xd8" * 4])
    empty = pydicom.dcmread(io.BytesIO(dicom_of(small)))
    del empty.PixelData
    file = io.BytesIO()
    empty.save_as(file)
    huge = dicom_of(small, Rows=60_000, Columns=60_000)
    for content, words in (
        (dicom_of(small, syntax=pydicom.uid.JPEGLosslessSV1, pixels=fragment), "has no decoder here"),
        (file.getvalue(), "without an image"),
        (huge, "60000 x 60000 pixels exceed the limit"),
        (dicom_of(small, Rows=15_000, Columns=15_000, pixels=b"\0" * 4), "would grow to more than"),
        (dicom_of(small, Rows=900, Columns=900), "pixel data"),
        (dicom_of(small, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian), "deflated DICOM"),
        (dicom_of(GREY)[:600], "."),
        (b"\0" * 128 + b"DICM" + bytes(range(256)), "."),
    ):
        with pytest.raises(UnreadableError, match=words):
            open_bytes(content, 3)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UnreadableError, match=r"need the package pydicom; install it with `pip install"):
        open_bytes(huge, 3)
