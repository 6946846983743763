"""Reading leaves the process as it was: Pillow's limit, the filters of warnings, stderr."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from dovetail.data.reading.decode import (
    UnreadableError,
    open_bytes,
    opened,
)
from tests.data.photos import encoded
from tests.data.reading.test_decode import EXPECTED, IMAGE, read


def state() -> tuple[object, ...]:
    """Return what reading must leave as it was: where stderr leads, Pillow's limit, the filters of warnings."""
    return os.fstat(2).st_ino, os.fstat(2).st_rdev, Image.MAX_IMAGE_PIXELS, list(warnings.filters)


def test_readers_that_overlap_leave_everything_as_it_was() -> None:
    content = encoded(IMAGE, "TIFF", compression="tiff_lzw")
    before = state()
    first, second = opened(content), opened(content)
    for reader in (first, second):
        reader.__enter__().load()
    assert Image.MAX_IMAGE_PIXELS is None
    first.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS is None
    second.__exit__(None, None, None)
    assert state() == before


def test_threads_that_read_leave_everything_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    content = bytearray(encoded(IMAGE, "TIFF", compression="tiff_lzw"))
    content[200:400] = bytes(range(200))
    before = state()
    with ThreadPoolExecutor(4) as pool:
        for reading in [pool.submit(open_bytes, bytes(content), 3) for _ in range(100)]:
            assert isinstance(reading.exception(), UnreadableError)
    assert state() == before
    os.write(2, b"still there\n")
    assert capfd.readouterr().err == "still there\n"


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_copy_made_amid_a_reading_has_the_limit_back() -> None:
    """It has no threads that could put it back."""
    before, content = state(), encoded(IMAGE, "PNG")

    def check() -> None:
        assert state() == before
        assert read(content).equal(EXPECTED)
        assert state() == before

    copy = multiprocessing.get_context("fork").Process(target=check)
    with opened(content):
        copy.start()
    copy.join()
    assert copy.exitcode == 0


def test_nothing_follows_forks_before_an_image_is_read() -> None:
    code = (
        "import os, sys, torch, PIL.Image, simplejpeg, tifffile\n"
        "calls = []\n"
        "os.register_at_fork = lambda **_: calls.append(1)\n"
        "import dovetail.data.reading.decode as decode\n"
        "before = len(calls)\n"
        "import io, numpy\n"
        "file = io.BytesIO(); PIL.Image.new('L', (2, 2)).save(file, 'PNG')\n"
        "decode.open_bytes(file.getvalue(), 1); decode.open_bytes(file.getvalue(), 1)\n"
        "print(before, len(calls))\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["0", "1"]
