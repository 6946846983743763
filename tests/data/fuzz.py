"""A corpus of malformed files, made by a seeded fuzzer, among images that are whole."""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.photos import encoded, smooth

FORMATS = {
    "jpg": ("JPEG", {}),
    "progressive.jpg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "tif": ("TIFF", {}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate.tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
}
SIDES = (0x7FFFFFFF, 1 << 20, 65535)


@dataclass
class Corpus:
    """Files in `folder`.

    Attributes:
        malformed: What the fuzzer made. Not all of it is unreadable: a flipped byte may harm nothing.
        certain: Those that cannot be read for certain.
    """

    folder: Path
    malformed: list[Path] = field(default_factory=list)
    certain: list[Path] = field(default_factory=list)

    def add(self, name: str | bytes, content: bytes, *, certain: bool = False) -> Path:
        """Write a malformed file."""
        path = Path(os.fsdecode(os.path.join(os.fsencode(self.folder), os.fsencode(name))))  # noqa: PTH118 (odd bytes)
        path.write_bytes(content)
        return self.note(path, certain=certain)

    def note(self, path: Path, *, certain: bool) -> Path:
        """Count `path` as malformed."""
        self.malformed.append(path)
        if certain:
            self.certain.append(path)
        return path


def make_corpus(folder: Path, *, seed: int = 0, whole: int = 480) -> Corpus:
    """Return a folder with at least 400 malformed files and `whole` small images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(whole):
        Image.fromarray(smooth(24, 32, seed=number)).save(folder / f"whole-{number:03}.jpg", quality=60)
    corpus = Corpus(folder)
    originals = [
        (f"{number}.{suffix}", encoded(Image.fromarray(smooth(40, 48, seed=number)), file_format, **options))
        for number in range(2)
        for suffix, (file_format, options) in FORMATS.items()
    ]
    array = io.BytesIO()
    np.save(array, smooth(40, 48))
    originals.append(("array.npy", array.getvalue()))
    for name, content in originals:
        truncated(corpus, name, content)
        flipped(corpus, name, content, rng)
    wrong_suffixes(corpus, rng)
    giant_headers(corpus)
    links(corpus)
    odd_names(corpus, originals[0][1])
    return corpus


def truncated(corpus: Corpus, name: str, content: bytes) -> None:
    """Add the file cut at every tenth of its length."""
    for tenth in range(10):
        corpus.add(f"cut-{tenth}-{name}", content[: len(content) * tenth // 10], certain=tenth <= 1)


def flipped(corpus: Corpus, name: str, content: bytes, rng: np.random.Generator) -> None:
    """Add copies with some bytes changed, in the header or anywhere."""
    for number in range(10):
        damaged = bytearray(content)
        end = min(64, len(content)) if number % 2 else len(content)
        for place in rng.integers(0, end, size=1 + number):
            damaged[place] ^= int(rng.integers(1, 256))
        corpus.add(f"flip-{number}-{name}", bytes(damaged))


def wrong_suffixes(corpus: Corpus, rng: np.random.Generator) -> None:
    """Add text, archives, noise and nothing under the names of images."""
    contents = {
        "text": b"not an image\n" * 20,
        "page": b"<html><script>alert(1)</script></html>",
        "archive": b"PK\x03\x04" + bytes(60),
        "pickle": b"\x80\x04\x95\x0e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
        "noise": rng.bytes(500),
        "zeros": bytes(500),
        "magic": b"\x89PNG\r\n\x1a\n",
    }
    for kind, content in contents.items():
        for suffix in ("jpg", "png", "webp", "tif", "bmp", "gif", "npy"):
            corpus.add(f"{kind}.{suffix}", content, certain=True)


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """Return a PNG that claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def giant_headers(corpus: Corpus) -> None:
    """Add small files that claim to be huge."""
    bomb = png_of(40000, 40000, bytes(1_000_000))
    corpus.add("giant-bomb.png", bomb, certain=True)
    for side in SIDES:
        corpus.add(f"giant-{side}.png", png_of(side, side), certain=True)
        corpus.add(f"giant-{side}.gif", b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(20), certain=True)
        size = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        corpus.add(f"giant-{side}.bmp", b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + size, certain=True)
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({side}, {side}, 3), }}\n".encode()
        corpus.add(f"giant-{side}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header, certain=True)
        entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
        entries += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, side), (279, 4, 1, 0xFFFFFFF0)]
        body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        corpus.add(f"giant-{side}.tif", b"II*\0" + struct.pack("<I", 8) + body + bytes(4), certain=True)


def links(corpus: Corpus) -> None:
    """Add links to nothing, to themselves, to each other and to the folder they lie in."""
    for name, target in (("self.jpg", "self.jpg"), ("a.jpg", "b.jpg"), ("b.jpg", "a.jpg"), ("gone.jpg", "nowhere.jpg")):
        path = corpus.folder / f"link-{name}"
        path.symlink_to(f"link-{target}")
        corpus.note(path, certain=True)
    (corpus.folder / "again").symlink_to(corpus.folder, target_is_directory=True)


def odd_names(corpus: Corpus, content: bytes) -> None:
    """Add unreadable files with line breaks, quotes, escape codes and bytes that are no UTF-8 in their names."""
    odd = (b"new\nline", b"quote\"'", b"\xff\xfe\x80", b"tab\t", b"\x1b[31mred", b"-rf", b"  ", b"a" * 200, b"<b>&amp;")
    for number, name in enumerate(odd):
        corpus.add(name + b".jpg", content[: 20 + number], certain=True)
