"""Recognises image files by name and content, without reading them: no import takes long."""

from __future__ import annotations

from PIL import features

# Formats that every Pillow reads, and two that only some builds read. No others, as some of them run programs.
_SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    **({"JPEG2000": (".jp2", ".j2k", ".j2c", ".jpx")} if features.check("jpg_2000") else {}),
    **({"AVIF": (".avif",)} if features.check("avif") else {}),
}
FORMATS = tuple(_SUFFIXES_OF)
# Files with these suffixes count as images without being opened. All others are opened.
SUFFIXES = frozenset({".npy", ".dcm", *(suffix for suffixes in _SUFFIXES_OF.values() for suffix in suffixes)})
_WORDS = {"WEBP": "WebP", "PPM": "PPM, PGM", "JPEG2000": "JPEG 2000"}
FORMATS_READ = f"{', '.join(_WORDS.get(name, name) for name in FORMATS)}, DICOM, NIfTI or .npy files"
NPY_MAGIC = b"\x93NUMPY"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG2000_MAGIC = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51") if "JPEG2000" in FORMATS else ()
_MAGIC = (NPY_MAGIC, *_JPEG2000_MAGIC, b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", *TIFF_MAGIC)
_DICOM_MAGIC, _DICOM_MAGIC_AT = b"DICM", 128


def looks_like_image(head: bytes) -> bool:
    """Return whether a file that starts with `head` (132 bytes, or the whole file) has a supported format."""
    if head[4:8] == b"ftyp":
        return "AVIF" in FORMATS and head[8:12] in (b"avif", b"avis")
    return head.startswith(_MAGIC) or is_dicom(head) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def is_dicom(head: bytes) -> bool:
    """Return whether a file that starts with `head` (132 bytes or more) is a DICOM file."""
    return head[_DICOM_MAGIC_AT : _DICOM_MAGIC_AT + len(_DICOM_MAGIC)] == _DICOM_MAGIC
