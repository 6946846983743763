"""Archives as somebody who wishes harm would make them: nothing outside is read or written, nothing grows unbounded."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dovetail.data.loader import make_loader
from dovetail.data.open import open_source
from dovetail.data.reading import archives
from dovetail.data.reading.archives import Archive, Member, open_archive
from dovetail.data.reading.decode import UnreadableError
from dovetail.data.sources import ArchiveSource
from dovetail.errors import DovetailError
from dovetail.views.plan import ViewPlan, ViewSpec
from tests.data.fuzz import png_of
from tests.data.photos import encoded, smooth

PLAN = ViewPlan(views=(ViewSpec(size_px=16),))


def photo(seed: int = 0) -> bytes:
    return encoded(Image.fromarray(smooth(seed=seed)), "JPEG")


PHOTO = photo()


def tar_of(path: Path, members: dict[str, bytes], *more: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> Path:
    """Return a tar with plain files, then with members that have no data."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in more:
            tar.addfile(info)
    return path


def zip_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Return a zip with plain files."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


MAKERS = {"tar": tar_of, "zip": zip_of}


def opened(path: Path) -> Archive:
    archive = open_archive(path)
    assert archive is not None
    return archive


def reasons(path: Path) -> dict[str, str | None]:
    """Return why each member is refused, and check that reading says the same."""
    archive, found = opened(path), {}
    for member in archive.members():
        found[member.name] = member.refused
        if member.refused is not None:
            with pytest.raises(UnreadableError) as raised:
                archive.read(member)
            assert str(raised.value) == member.refused
    return found


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("kind", ["tar", "zip", "stored.zip"])
def test_photographs_are_read_where_they_lie(tmp_path: Path, kind: str) -> None:
    contents = {"b/2.jpg": PHOTO, "./a.jpg": PHOTO, "plain": PHOTO, "b/2.json": b"{}", ".a.jpg": b"", "z.jpg": b"bad"}
    contents |= {"__MACOSX/b/._2.jpg": b"", "line\nbreak-\u732b.jpg": PHOTO, f"{'long' * 60}.jpg": PHOTO}
    path = tmp_path / f"photos.{kind}"
    if kind == "tar":
        tar_of(path, contents)
    else:
        zip_of(path, contents, zipfile.ZIP_STORED if kind == "stored.zip" else zipfile.ZIP_DEFLATED)
    source = open_source(path)
    there = pickle.loads(pickle.dumps(source))
    assert isinstance(there, ArchiveSource)
    names = [there.name(index).removeprefix(f"{path}/") for index in range(there.num_images)]
    assert names == ["b/2.jpg", "./a.jpg", "plain", "z.jpg", "line\nbreak-\u732b.jpg", f"{'long' * 60}.jpg"]
    for index, name in enumerate(names):
        if name != "z.jpg":
            assert there.open(index, 3).decode(1).shape == (3, 40, 60)
    with pytest.raises(UnreadableError, match="not an image"):
        there.open(3, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_old_tars_and_bytes_that_are_no_text_are_read(tmp_path: Path) -> None:
    for number, form in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT)):
        path = tar_of(tmp_path / f"{number}.tar", {os.fsdecode(b"\xff\xfe.jpg"): PHOTO}, form=form)
        assert open_source(path).open(0, 3).width_px == 60
    content = bytearray(path.read_bytes())
    content[257:265] = bytes(8)  # as before there was a magic
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + 8 * 32 + sum(content[156:512]))
    path.write_bytes(bytes(content))
    assert open_source(path).open(0, 3).width_px == 60


UNSAFE = [
    "../out.jpg",
    "a/../../out.jpg",
    "/etc/out.jpg",
    "..\\out.jpg",
    "\\\\host\\out.jpg",
    "C:\\out.jpg",
    "//out.jpg",
]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_lead_outside_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out.jpg").write_bytes(PHOTO)
    found = reasons(MAKERS[kind](tmp_path / "in" / f"evil.{kind}", dict.fromkeys([*UNSAFE, "a..b.jpg"], PHOTO)))
    assert found.pop("a..b.jpg") is None
    assert len(found) == len(UNSAFE)
    assert all(reason and "out of its archive" in reason for reason in found.values())


def test_links_and_devices_in_tars_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(PHOTO)
    evil = [
        link("soft.jpg", str(secret)),
        link("hard.jpg", "../secret.jpg", tarfile.LNKTYPE),
        link("self.jpg", "self.jpg"),
    ]
    evil += [link("folder", "/"), link("pipe.jpg", "", tarfile.FIFOTYPE), link("disk.jpg", "", tarfile.BLKTYPE)]
    evil += [link("tty.jpg", "", tarfile.CHRTYPE)]
    (tmp_path / "in").mkdir()
    path = tar_of(tmp_path / "in" / "evil.tar", {"folder/passwd.jpg": PHOTO}, *evil)
    found = reasons(path)
    assert found.pop("folder/passwd.jpg") is None  # lies in the archive: the link beside it is not followed
    assert len(found) == len(evil)
    assert all(reason and ("link" in reason or "not a regular file" in reason) for reason in found.values())


def test_links_encryption_and_odd_methods_in_zips_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, mode in (("link.jpg", stat.S_IFLNK), ("pipe.jpg", stat.S_IFIFO), ("plain.jpg", stat.S_IFREG)):
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode | 0o644) << 16
            archive.writestr(info, "/etc/passwd")
        archive.writestr("lzma.jpg", PHOTO, zipfile.ZIP_LZMA)
        archive.writestr("locked.jpg", PHOTO)
        archive.filelist[-1].flag_bits |= 1
        archive.writestr("other.jpg", PHOTO)
        archive.filelist[-1].file_size += 7
    found = reasons(path)
    assert found.pop("plain.jpg") is None
    words = {
        "link": "a link",
        "pipe": "not a regular",
        "lzma": "unsupported",
        "locked": "encrypted",
        "other": "two different sizes",
    }
    assert {name.removesuffix(".jpg") for name in found} == words.keys()
    assert all(words[name.removesuffix(".jpg")] in (reason or "") for name, reason in found.items())


def test_bombs_of_bytes_are_refused_before_they_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zip_of(tmp_path / "bomb.zip", {"bomb.jpg": bytes(20 << 20), "small.npy": bytes(1 << 20)})
    found = reasons(path)
    assert "more than 200 times" in (found["bomb.jpg"] or "")
    assert found["small.npy"] is None  # too small to harm
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 1 << 19)
    assert all("exceed the limit" in (reason or "") for reason in reasons(path).values())
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 100)
    assert "exceed the limit" in (reasons(tar_of(tmp_path / "a.tar", {"a.jpg": PHOTO}))["a.jpg"] or "")


def test_a_member_never_gives_more_than_it_promised(tmp_path: Path) -> None:
    """Its directory says 1,000 bytes, its data inflates to 64 million: no such memory is taken."""
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("liar.npy", bytes(64_000_000))
        bomb.filelist[0].file_size = 1000
    archive = opened(path)
    member = next(archive.members())
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableError, match="checksum does not match"):
            archive.read(member)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_bombs_of_members_get_a_sentence(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = MAKERS[kind](tmp_path / f"many.{kind}", {f"{number}.jpg": b"x" for number in range(9)})
    assert open_source(path).num_images == 9
    monkeypatch.setattr(archives, "MAX_MEMBERS", 8)
    with pytest.raises(DovetailError, match=rf"many\.{kind}' cannot be listed .* more than 8 members\)"):
        open_source(path)


def test_bombs_of_pixels_are_refused(tmp_path: Path) -> None:
    source = open_source(zip_of(tmp_path / "photos.zip", {"bomb.png": png_of(40000, 40000, bytes(10_000))}))
    with pytest.raises(UnreadableError, match="pixels exceed the limit"):
        source.open(0, 3)


def long_header(kind: bytes, claimed: int) -> bytes:
    """Return a tar whose first header says that a name or a record of so many bytes follows."""
    info = tarfile.TarInfo("long")
    info.type, info.size = kind, claimed
    return info.tobuf(tarfile.GNU_FORMAT) + b"x" * (1 << 20)


def negative_size() -> bytes:
    """Return a tar whose second member lies before it: a reader that believes it goes round for ever."""
    content = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    content[124:136] = b"\xff" * 10 + struct.pack(">H", 0xFE00)
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + 8 * 32 + sum(content[156:512]))
    return bytes(content)


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "cut.tar": lambda whole: whole[:3000],
    "noise.tar": lambda whole: whole[:2600] + bytes(255 - byte for byte in whole[2600:]),
    "name.tar": lambda whole: long_header(tarfile.GNUTYPE_LONGNAME, 1 << 40),
    "record.tar": lambda whole: long_header(tarfile.XHDTYPE, 1 << 40),
    "negative.tar": lambda whole: negative_size(),
    "header.tar": lambda whole: whole[:1800],
    "cut.zip": lambda whole: whole[: len(whole) // 2],
    "noise.zip": lambda whole: whole[:-73] + b"x" * 13 + whole[-60:],
    "directory.zip": lambda whole: whole[:-10] + struct.pack("<II", 0xFFFFFFF0, 1) + whole[-2:],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_archives_get_a_sentence(tmp_path: Path, name: str) -> None:
    path = MAKERS[name[-3:]](tmp_path / name, {"a.jpg": PHOTO, "b.jpg": PHOTO})
    path.write_bytes(DAMAGED[name](path.read_bytes()))
    with pytest.raises(DovetailError, match="cannot be listed as a") as raised:
        open_source(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_flipped_bytes_change_or_end_nothing_but_their_member(tmp_path: Path, kind: str) -> None:
    """Whatever byte is changed, there is a sentence, a reason, or an image."""
    whole = MAKERS[kind](tmp_path / f"whole.{kind}", {"a.jpg": PHOTO[:700], "b.npy": bytes(300)}).read_bytes()
    path = tmp_path / f"flipped.{kind}"
    said = 0
    for place in range(0, len(whole), 31):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        try:
            archive = opened(path) if kind == "zip" or place < 200 else archives.TarArchive(path)
            for member in archive.members():
                archive.read(member)
        except (DovetailError, UnreadableError, AssertionError):
            said += 1
    assert said > 5


def test_what_a_zip_says_of_places_is_checked(tmp_path: Path) -> None:
    archive = opened(zip_of(tmp_path / "photos.zip", {"a.jpg": PHOTO}))
    good = next(archive.members())
    far = Member("far.jpg", 10**9, 10**9, 10**9)
    for member, words in (
        (far, "truncated"),
        (Member("wrong.jpg", 3, good.stored_bytes, good.num_bytes), "no header"),
        (Member("deep.jpg", -5, 10, 10), "Invalid argument"),
        (Member("crc.jpg", 0, good.stored_bytes, good.num_bytes, deflated=True, checksum=1), "checksum does not match"),
        (Member("raw.jpg", 0, good.stored_bytes, good.stored_bytes, checksum=1), "checksum does not match"),
    ):
        with pytest.raises(UnreadableError, match=words):
            archive.read(member)
    assert archive.read(good) == PHOTO


def test_an_archive_that_changes_during_the_run_is_named(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "photos.tar", {"a.jpg": PHOTO})
    source = open_source(path)
    tar_of(path, {"other": b"x" * 5000, "a.jpg": PHOTO})
    with pytest.raises(UnreadableError, match="archive was changed"):
        source.open(0, 3)
    path.unlink()
    with pytest.raises(UnreadableError, match="No such file"):
        source.open(0, 3)


def test_archives_that_cannot_be_used_get_a_sentence(tmp_path: Path) -> None:
    tar_of(tmp_path / "notes.tar", {"a.txt": b"text", "b.txt": b"text"})
    with pytest.raises(DovetailError, match=r"Found 2 \.txt files but no images in .*notes\.tar"):
        open_source(tmp_path / "notes.tar")
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "notes.tar", "a.jpg")
    with pytest.raises(DovetailError, match=r"compressed tar.*decompress it to a plain \.tar"):
        open_source(tmp_path / "photos.tar.gz")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_workers_share_an_archive_and_name_what_they_skip(tmp_path: Path, kind: str) -> None:
    contents = {f"{number:02}.jpg": photo(number) for number in range(14)}
    path = MAKERS[kind](tmp_path / f"photos.{kind}", contents | {"../evil.jpg": PHOTO, "bad.jpg": PHOTO[:200]})
    source, log = open_source(path), tmp_path / "skipped.jsonl"
    batches = []
    for workers in (0, 2):
        loader = make_loader(source, PLAN, global_batch=4, total_steps=4, seed=0, num_workers=workers, skipped_file=log)
        batches.append([batch.crops[0] for batch in loader])
    assert all(ours.equal(others) for ours, others in zip(*batches, strict=True))
    named = {json.loads(line)["path"]: json.loads(line)["reason"] for line in log.read_text().splitlines()}
    assert named.keys() == {f"{path}/../evil.jpg", f"{path}/bad.jpg"}
    assert "'..'" in named[f"{path}/../evil.jpg"]
