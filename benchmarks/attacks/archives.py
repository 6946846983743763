"""Attacks by archives, shards and images."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.attacks import claims
from benchmarks.attacks.arena import RUN, Arena, Attack, BrokenError, noise
from dovetail.data.open import open_source
from dovetail.data.reading.archives import open_archive
from dovetail.data.reading.decode import UnreadableError, open_file

OUTSIDE = (
    "../outside/secret.png",
    "/etc/passwd.png",
    "a/../../outside/secret.png",
    "..\\secret.png",
    "C:\\secret.png",
    "..",
    "//server/a.png",
    "./../x.png",
    "a/./../../x.png",
    "/../x.png",
    "C:a.png",
    "a\\..\\..\\x.png",
)
KINDS = {
    "symbolic link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "contiguous": tarfile.CONTTYPE,
}
DAMAGE = ("cut", "header", "checksum", "size", "zeros", "text", "nothing", "directory", "pickle", "flipped")
GIANTS = ("png", "gif", "bmp", "npy", "tif", "ppm", "png of nothing", "png of black", "text chunk", "icc profile")
HOSTILE = ("sparse file", "device", "random device", "pipe", "folder", "link to itself", "link to nothing", "socket")
READERS = ("open_file", "predict", "embed", "pretrain")


def attacks() -> Iterator[Attack]:
    """Yield all attacks of this module."""
    for form in ("tar", "zip"):
        for name in OUTSIDE:
            for reader in ("source", "pretrain"):
                yield Attack(claims.OUTSIDE, f"{form} {reader}: {name}", partial(named_outside, form, name, reader))
        for damage in DAMAGE:
            for reader in ("source", "pretrain"):
                yield Attack(claims.SHARDS, f"{form} {reader}: {damage}", partial(damaged, form, damage, reader))
    for kind in KINDS:
        for target in ("SECRET", "/etc/passwd", "/dev/zero", "a.png"):
            yield Attack(claims.LINKS, f"{kind} to {target}", partial(linked, kind, target))
    yield Attack(claims.LINKS, "symbolic link in a zip", zipped_link)
    for ratio in (1 << 22, 1 << 28, 1 << 31):
        yield Attack(claims.BOMBS, f"zip member of {ratio >> 20} MiB of nothing", partial(bomb, ratio))
    for size in (1 << 33, 1 << 62, 8**11 - 1):
        yield Attack(claims.BOMBS, f"tar member that says {size} bytes", partial(lying_tar, size))
    for place in ("folder", "alone"):
        for reader in ("pretrain", "prepare"):
            yield Attack(claims.PIPE, f"{reader}: {place}", partial(piped, place, reader))
    for kind in GIANTS:
        for reader in READERS:
            yield Attack(claims.GROWING, f"{reader}: {kind}", partial(among_images, partial(giant, kind), reader))
    for kind in HOSTILE:
        for reader in READERS:
            yield Attack(claims.HUGE_FILES, f"{reader}: {kind}", partial(among_images, partial(hostile, kind), reader))


def png() -> bytes:
    """Return a small image."""
    file = io.BytesIO()
    noise(0).save(file, "PNG")
    return file.getvalue()


def archive_of(path: Path, members: dict[str, bytes]) -> Path:
    """Write members under the names that are given, whatever they are."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def read_all(path: Path) -> None:
    """Read every image of a source that can be read."""
    source = open_source(path)
    for index in range(source.num_images):
        try:
            source.open(index, 3).decode(1)
        except UnreadableError:
            continue


def given(arena: Arena, path: Path, reader: str) -> None:
    """Give an archive or a folder to what reads it."""
    if reader == "source":
        arena.call(lambda: read_all(path), refused=None)
        return
    words = [f"--{name.replace('_', '-')}={value}" for name, value in RUN.items() if name != "recipe"]
    small = [f"--recipe.{name.replace('_', '-')}={value}" for name, value in RUN["recipe"].items()]
    arena.command("pretrain", "--data", path, "--out", arena.here / "new", *words, *small, refused=None)


def named_outside(form: str, name: str, reader: str, arena: Arena) -> None:
    """Name a member so that it leads out of the archive."""
    path = archive_of(arena.here / f"a.{form}", {**{f"{n}.png": png() for n in range(3)}, name: png()})
    archive = open_archive(path)
    if archive is None:
        raise BrokenError("the archive is not read")
    if any(member.refused is None and member.name not in ("0.png", "1.png", "2.png") for member in archive.members()):
        raise BrokenError("the name is taken")
    given(arena, path, reader)


def damaged(form: str, damage: str, reader: str, arena: Arena) -> None:
    """Damage an archive."""
    path = archive_of(arena.here / f"a.{form}", {f"{number}.png": png() for number in range(4)})
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        for place in np.random.default_rng(0).integers(0, len(content), 200):
            content[place] ^= 255
    changes: dict[str, bytes] = {
        "cut": bytes(content[: len(content) // 2]),
        "header": bytes(512) + bytes(content[512:]),
        "checksum": bytes(content[:148]) + b"99999999" + bytes(content[156:]),
        "zeros": bytes(len(content)),
        "size": bytes(content[:124]) + b"77777777777\0" + bytes(content[136:]),
        "text": b"words " * 1000,
        "nothing": b"",
        "directory": bytes(content[:-40]) + b"\xff" * 40,
        "pickle": b"\x80\x04\x95" + bytes(600),
        "flipped": bytes(content),
    }
    path.write_bytes(changes[damage])
    given(arena, path, reader)


def linked(kind: str, target: str, arena: Arena) -> None:
    """Put a member of an odd kind among images."""
    path = archive_of(arena.here / "a.tar", {f"{number}.png": png() for number in range(3)})
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("z.png")
        info.type, info.linkname = KINDS[kind], target.replace("SECRET", str(arena.secret))
        tar.addfile(info)
    given(arena, path, "source")


def zipped_link(arena: Arena) -> None:
    """Put a symbolic link into a zip."""
    path = archive_of(arena.here / "a.zip", {"0.png": png()})
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("z.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, str(arena.secret))
    given(arena, path, "source")


def bomb(size: int, arena: Arena) -> None:
    """Put zeros into a zip."""
    path = arena.here / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", png())
        with archive.open("z.png", "w", force_zip64=True) as member:
            for _ in range(size >> 22):
                member.write(bytes(1 << 22))
    given(arena, path, "source")


def lying_tar(size: int, arena: Arena) -> None:
    """Let a member say that it has more bytes than there are."""
    info = tarfile.TarInfo("z.png")
    info.size = size
    (arena.here / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    given(arena, arena.here / "a.tar", "source")


def piped(place: str, reader: str, arena: Arena) -> None:
    """Put a pipe on which nobody writes in the place of a shard."""
    folder = arena.here / "shards"
    folder.mkdir()
    os.mkfifo(folder / "a.tar")
    if place == "folder":
        archive_of(folder / "b.tar", {"0.png": png()})
    data = folder if place == "folder" else folder / "a.tar"
    if reader == "pretrain":
        given(arena, data, reader)
    else:
        arena.command("prepare", "--data", data, "--shards", arena.here / "out")


def hostile(kind: str, path: Path) -> None:
    """Make a file that is none, or has no end."""
    if kind == "sparse file":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        import socket

        working = Path.cwd()
        os.chdir(path.parent)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(working)
    else:
        targets = {"device": "/dev/zero", "random device": "/dev/urandom", "link to itself": path.name}
        path.symlink_to(targets.get(kind, "nowhere.png"))


def giant(kind: str, path: Path) -> None:
    """Make a small file that stands for a huge image, or for much else."""
    side = 60_000
    tiff = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (278, 4, 1, side)]
    tiff += [(279, 4, 1, 0xFFFFFFF0)]
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({side}, {side}, 3), }}\n".encode()
    makers: dict[str, Callable[[], bytes]] = {
        "png": lambda: png_of(side, side, bytes(100_000)),
        "ppm": lambda: b"P6 %d %d 255\n" % (side, side) + bytes(100),
        "gif": lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(20),
        "bmp": lambda: (
            b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, *[0] * 6)
        ),
        "npy": lambda: b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head,
        "tif": lambda: (
            b"II*\0"
            + struct.pack("<IH", 8, len(tiff))
            + b"".join(struct.pack("<HHII", *one) for one in tiff)
            + bytes(4)
        ),
        "png of nothing": lambda: png_of(12_000, 12_000, bytes(100_000)),
        "png of black": lambda: png_of(9_000, 9_000, bytes(9_000 * 27_001)),
        "text chunk": lambda: png_of(8, 8, bytes(200), (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 28)))),
        "icc profile": lambda: png_of(8, 8, bytes(200), (b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 28)))),
    }
    path.write_bytes(makers[kind]())


def png_of(width: int, height: int, data: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """Return a PNG that claims a size, with further chunks."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rest = b"".join(chunk(kind, body) for kind, body in more)
    return b"\x89PNG\r\n\x1a\n" + header + rest + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def among_images(make: Callable[[Path], None], reader: str, arena: Arena) -> None:
    """Put a hostile file among good images."""
    folder = arena.copied(arena.photos)
    make(folder / "x.png")
    if reader == "open_file":
        try:
            pixels = open_file(folder / "x.png", 3).decode(1)
        except UnreadableError:
            return
        if max(pixels.shape) > 8:
            raise BrokenError("it is read")
    elif reader == "predict":
        arena.command(
            *("predict", "--run", arena.tuned["classify"], "--data", folder, "--out", arena.here / "out"),
            *("--accelerator", "cpu", "--workers", 0),
            refused=None,
        )
    elif reader == "embed":
        arena.command(
            *("embed", "--run", arena.run, "--data", folder, "--out", arena.here / "out.npy", "--accelerator", "cpu"),
            refused=None,
        )
    else:
        given(arena, folder, reader)
