"""Slices of NIfTI volumes."""

from __future__ import annotations

import gzip
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from dovetail.data.identity import identity_of
from dovetail.data.open import open_source
from dovetail.data.reading.decode import UnreadableError
from dovetail.data.reading.nifti import read_header
from dovetail.data.reading.values import raw_values
from dovetail.data.shards.write import write_shards
from dovetail.data.volumes import VolumeSource
from dovetail.errors import DovetailError
from tests.data.photos import folder_of

nibabel = pytest.importorskip("nibabel")
VOLUME = np.arange(7 * 9 * 5, dtype=np.int16).reshape(7, 9, 5) - 100


def save(array: np.ndarray, path: Path, kind: str = "Nifti1Image") -> Path:
    """Save an array as a NIfTI file, and return its path."""
    path.parent.mkdir(exist_ok=True)
    nibabel.save(getattr(nibabel, kind)(array, np.eye(4), dtype=array.dtype), path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", ["Nifti1Image", "Nifti2Image"])
def test_slices_are_images(kind: str, suffix: str, tmp_path: Path) -> None:
    for number in range(2):
        save(VOLUME + number, tmp_path / "in" / f"{number}{suffix}", kind)
    (tmp_path / "in" / "scan.json").write_text("{}")
    source = pickle.loads(pickle.dumps(open_source(tmp_path / "in")))
    assert isinstance(source, VolumeSource)
    assert source.num_images == 10
    assert source.name(6) == f"{tmp_path}/in/1{suffix}#1"
    assert source.left_out == "Skipped 1 .json file (not supported as images)."
    with raw_values():
        for index in range(10):
            found = source.open(index, 1).decode(1)[0].numpy()
            assert np.array_equal(found, (VOLUME + index // 5)[:, :, index % 5].T)
    assert sorted(source.order(seed=0, epoch=0)[0:10]) == list(range(10))
    assert open_source(tmp_path / "in" / f"0{suffix}").num_images == 5
    assert identity_of(source)["names"] is not None
    write_shards(source, tmp_path / "shards", images_per_shard=3)
    assert open_source(tmp_path / "shards").num_images == 10


def test_channels_scaling_and_colours(tmp_path: Path) -> None:
    four = np.arange(7 * 9 * 5 * 4, dtype=np.uint16).reshape(7, 9, 5, 4)
    source = open_source(save(four, tmp_path / "four.nii"))
    with raw_values():
        assert np.array_equal(source.open(3, 4).decode(1).numpy(), four[:, :, 3].transpose(2, 1, 0))
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "scaled.nii")
    source = open_source(tmp_path / "scaled.nii")
    expected = nibabel.load(tmp_path / "scaled.nii").get_fdata()
    with raw_values():
        assert np.allclose(source.open(0, 1).decode(1)[0].numpy(), expected[:, :, 0].T)
    colours = np.zeros((7, 9, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["G"] = 200
    source = open_source(save(colours, tmp_path / "colours.nii.gz"))
    assert source.open(1, 3).decode(1)[:, 0, 0].tolist() == [0, 200, 0]


def test_volumes_of_several_folders(tmp_path: Path) -> None:
    one, other = save(VOLUME, tmp_path / "a" / "x.nii.gz"), save(VOLUME, tmp_path / "b" / "y.nii")
    assert open_source([one.parent, other]).num_images == 10
    folder_of(tmp_path / "b", 2)
    with pytest.raises(DovetailError, match="contains 1 NIfTI volume and 2 images"):
        open_source(tmp_path / "b")


def test_hostile_volumes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good = save(VOLUME, tmp_path / "good.nii")
    header = nibabel.load(good).header.copy()
    header.set_data_shape((3000, 3000, 3000))
    monster = header.binaryblock + b"\0" * 8
    for name, bad in {
        "short.nii": good.read_bytes()[:-10],
        "words.nii": b"words" * 200,
        "empty.nii.gz": b"",
        "monster.nii": monster,
        "monster.nii.gz": gzip.compress(monster),
        "bomb.nii.gz": gzip.compress(b"\0" * 1_000_000),
    }.items():
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(UnreadableError):
            read_header(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.nii")
    with pytest.raises(UnreadableError, match="not a regular file"):
        read_header(tmp_path / "pipe.nii")
    assert open_source([good, tmp_path / "short.nii"]).num_images == 5
    assert "Skipped 1 NIfTI volume that cannot be read" in caplog.text
    packed = save(VOLUME, tmp_path / "later" / "x.nii.gz")
    source = open_source(packed)
    packed.write_bytes(packed.read_bytes()[:-60])
    with pytest.raises(UnreadableError, match="truncated"):
        source.open(4, 1)
    with pytest.raises(DovetailError, match="No NIfTI volume can be read, such as"):
        open_source(tmp_path / "words.nii")
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(DovetailError, match=r"need the package nibabel; install it with `pip install"):
        open_source(good)
