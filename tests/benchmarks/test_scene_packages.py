"""What the scenes are made of: lists, catalogues, archives, fetching, solar cells, corridors, licences."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from benchmarks.scenes import backgrounds, corridors, cutouts, fetch, furniture, licences, qt_resources, sets, solar
from benchmarks.scenes.fetch import Package
from benchmarks.scenes.lists import read_list
from benchmarks.scenes.stock import OTHER

from dovetail.errors import DovetailError


def test_lists_name_everything_once() -> None:
    stamps, photographs = read_list("stamps"), read_list("photographs")
    assert set(stamps) == {*cutouts.CLASSES, cutouts.NO_CLASS}
    assert list(photographs) == [package.name for package in backgrounds.PACKAGES]
    for names in (stamps, photographs):
        listed = [name for own in names.values() for name in own]
        assert len(listed) == len(set(listed)) > 50
    assert all(len(stamps[name]) > 15 for name in cutouts.CLASSES)


@pytest.mark.parametrize(
    ("name", "label", "group"),
    [("animals/gnu-baby", 0, "gnu"), ("animals/Gnu_stand", 0, "gnu"), ("signs/stop-2", OTHER, "stop-2")],
)
def test_pictures_of_one_thing_are_one_group(name: str, label: int, group: str) -> None:
    assert cutouts.group_of(name, label) == group


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Kitchen chair", "chair"),
        ("Table lamp", "lamp"),
        ("Wheelchair", None),
        ("Double bed", "bed"),
        ("Bathtub", "bath"),
        ("Round table", "table"),
        ("Window", None),
        ("Sedan", "vehicle"),
    ],
)
def test_furniture_is_named_by_object(name: str, label: str | None) -> None:
    assert furniture.label_of(name) == (OTHER if label is None else furniture.CLASSES.index(label))


def test_catalogues_are_read_by_number() -> None:
    text = "id#1=a\nname#1=Chair \nicon#1=/x.png\n\nname#12=Bed\nlicense=CC-0\n"
    assert furniture.objects_in(text) == {1: {"id": "a", "name": "Chair", "icon": "/x.png"}, 12: {"name": "Bed"}}


def resources(flags: int = qt_resources.COMPRESSED) -> bytes:
    """Return an archive of version 1 with `a/x.bin`, stored as `flags` say, and `y.bin`, plain."""
    contents = [zlib.compress(b"packed"), b"plain"]
    packed = struct.pack(">I", 6) + contents[0]
    data = struct.pack(">I", len(packed)) + packed + struct.pack(">I", 5) + contents[1]
    names, places = b"", {}
    for name in ("a", "x.bin", "y.bin"):
        places[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    tree = struct.pack(">IHII", 0, qt_resources.FOLDER, 2, 1)
    tree += struct.pack(">IHII", places["a"], qt_resources.FOLDER, 1, 3)
    tree += struct.pack(">IHHHI", places["y.bin"], 0, 0, 0, 4 + len(packed))
    tree += struct.pack(">IHHHI", places["x.bin"], flags, 0, 0, 0)
    start = 20
    header = struct.pack(">4I", 1, start, start + len(tree), start + len(tree) + len(data))
    return b"qres" + header + tree + data + names


def test_qt_resources_are_read() -> None:
    assert dict(qt_resources.files_in(resources())) == {"a/x.bin": b"packed", "y.bin": b"plain"}


def test_other_archives_are_refused() -> None:
    with pytest.raises(DovetailError, match="not an archive of Qt resources"):
        dict(qt_resources.files_in(b"PK\x03\x04"))
    with pytest.raises(DovetailError, match=r"a/x\.bin is compressed with zstd"):
        dict(qt_resources.files_in(resources(qt_resources.ZSTD)))


def test_a_package_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(package: Package, folder: Path) -> Path:
        calls.append(package.name)
        folder.mkdir()
        with zipfile.ZipFile(folder / "thing-1.whl", "w") as wheel:
            wheel.writestr("thing/a.txt", "content")
        return folder / "thing-1.whl"

    def keep(unpacked: Path, kept: Path) -> None:
        (kept / "a.txt").write_text((unpacked / "thing" / "a.txt").read_text())

    monkeypatch.setattr(fetch, "download", download)
    package = Package("thing", "python", "1", "0" * 64)
    first = fetch.fetch(package, tmp_path, keep, edition="1")
    assert fetch.fetch(package, tmp_path, keep, edition="1") == first
    assert calls == ["thing"]
    assert (first.archive, first.known) == ("thing-1.whl", False)
    assert (first.folder / "a.txt").read_text() == "content"
    known = fetch.fetch(Package("thing", "python", "1", first.sha256), tmp_path, keep, edition="1")
    assert known.known
    fetch.fetch(package, tmp_path, keep, edition="2")
    assert calls == ["thing", "thing"]
    assert sorted(path.name for path in (tmp_path / "packages").iterdir()) == ["thing-1", "thing-2"]


def test_a_machine_without_the_client_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DovetailError, match="this machine has no apt-get; build the set on Debian"):
        fetch.fetch(Package("thing", "debian", "1", ""), tmp_path / "cache", lambda *_: None, edition="1")
    assert list((tmp_path / "cache" / "packages").iterdir()) == []


def test_solar_cells_of_a_module_stay_together() -> None:
    blocks = solar.blocks_of(["mono"] * 130 + ["poly"] * 61)
    assert [len([one for one in blocks if one == name]) for name in dict.fromkeys(blocks)] == [60, 60, 10, 60, 1]


def test_solar_labels_are_read(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(
        "images/cell0001.png   1.0   mono\nimages/cell0002.png  0.3333333333333333 poly\n"
    )
    assert solar.read_labels(tmp_path / "labels.csv") == [
        ("images/cell0001.png", 1.0, "mono"),
        ("images/cell0002.png", pytest.approx(1 / 3), "poly"),
    ]


def test_frames_of_corridors_keep_pixels_and_owners_in_step(tmp_path: Path) -> None:
    pixels, owners = np.zeros((240, 320, 3), np.uint8), np.zeros((240, 320), np.uint8)
    owners[0:120, 40:160] = 2
    pixels[owners == 2] = 200
    owners[200:, 300:] = 1  # outside the middle square
    np.savez(tmp_path / "f.npz", pixels=pixels, owners=owners, labels=np.array([4, 6]))
    one = corridors.read_frame([tmp_path / "f.npz"], 60, 0)
    assert one.labels == [6]
    assert np.array_equal(one.pixels[..., 0] > 100, one.owners == 1)
    assert (one.owners == 1).sum() == 30 * 30
    assert np.array_equal(np.unique(one.mask), [0, 7])


def test_levels_of_corridors_belong_to_one_class_and_things_to_one_name() -> None:
    things = [thing for names in corridors.NAMES.values() for thing in names]
    assert len(things) == len(set(things)) == len(corridors.LABELS)
    assert len(set(corridors.LEVELS)) == len(corridors.LEVELS) == 68


def test_every_set_says_its_licences() -> None:
    assert set(licences.NOTES) == set(sets.BUILDERS)
    for package in (cutouts.STAMPS, furniture.FURNITURE, solar.CELLS, *backgrounds.PACKAGES):
        assert any(package.name in note for note in licences.NOTES.values())
        assert re.fullmatch("[0-9a-f]{64}", package.sha256)
