"""Decoding JPEGs: simplejpeg, which we use, against torchvision.io, PyTurboJPEG and Pillow, whole and smaller.

    python -m benchmarks.speed.decoding [--images 16] [--rounds 5] [--turbojpeg-library libturbojpeg.so.0]

Milliseconds of processor time an image, from bytes in memory to RGB pixels in memory of their own, on one core; forms
take turns. Smaller ones come out of the decoder (scaled DCT); torchvision.io offers none. PyTurboJPEG is measured where
it and a libturbojpeg of the system are installed; version 2 of it needs libturbojpeg 3, which Debian 12 has not, so
version 1.8 stands here with Debian's 2.1.5.

What 1/8 takes is nearly all entropy decoding, which the whole photograph has to go through at any size: no smaller size
and no binding saves it.

The second table says what a view of 224 px loses where the photograph of 12 megapixels is decoded smaller: grey levels
between it and the same crop of the whole photograph, mean over all pixels, and 99 of 100 pixels differ by no more than.
The margin is how many pixels the smaller photograph keeps at least for one of the view, along a side.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean, median

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.speed.common import LARGE, RESULTS, SMALL, foot, ratio, take_turns, write_photographs
from benchmarks.speed.views import ours, plan_of
from dovetail.data.reading.decode import open_file
from dovetail.views import sampling
from dovetail.views.plan import ViewPlan
from dovetail.views.random import Purpose, stream

OURS = "simplejpeg (ours)"
MARGINS = (2.0, 1.5, 1.0)
Decoder = Callable[[bytes, int], np.ndarray | Tensor]


def by_simplejpeg(content: bytes, shrink: int) -> np.ndarray:
    """Return uint8 [H, W, 3]."""
    if shrink == 1:
        return simplejpeg.decode_jpeg(content)
    height, width, _, _ = simplejpeg.decode_jpeg_header(content)
    return simplejpeg.decode_jpeg(content, min_height=-(-height // shrink), min_width=-(-width // shrink))


def by_pillow(content: bytes, shrink: int) -> np.ndarray:
    """Return uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(content)) as image:
        if shrink > 1:
            image.draft("RGB", (image.width // shrink, image.height // shrink))
        return np.asarray(image)


def by_torchvision(content: bytes, _: int) -> Tensor:
    """Return uint8 [3, H, W]."""
    return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)


def decoders(library: str | None) -> dict[str, Decoder]:
    """Return all that can be measured here by their names; say of PyTurboJPEG why not."""
    found: dict[str, Decoder] = {OURS: by_simplejpeg, "torchvision.io": by_torchvision, "Pillow": by_pillow}
    try:
        import turbojpeg

        jpeg = turbojpeg.TurboJPEG(library)
    except (ImportError, OSError, RuntimeError) as error:
        print(f"Skipping PyTurboJPEG ({str(error).splitlines()[0]}); install it and libturbojpeg.", file=sys.stderr)
        return found
    return found | {
        "PyTurboJPEG": lambda content, shrink: jpeg.decode(
            content, pixel_format=turbojpeg.TJPF_RGB, scaling_factor=(1, shrink)
        )
    }


def decode_all(decoder: Decoder, contents: Sequence[bytes], shrink: int) -> None:
    """Decode all, one after the other."""
    for content in contents:
        decoder(content, shrink)


def table(contents: Sequence[bytes], title: str, bindings: dict[str, Decoder], *, rounds: int) -> list[str]:
    """Measure whole and smaller decoding and return the lines of a table."""
    lines = []
    for shrink in (1, 2, 4, 8):
        offered = {name: form for name, form in bindings.items() if shrink == 1 or form is not by_torchvision}
        forms = {name: partial(decode_all, form, contents, shrink) for name, form in offered.items()}
        seconds = take_turns(forms, rounds=rounds)
        for name, took in seconds.items():
            size = "whole" if shrink == 1 else f"1/{shrink}"
            cells = [title, size, name, f"{1e3 * median(took) / len(contents):.2f}", ratio(took, seconds[OURS])]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


@contextmanager
def margin_of(value: float) -> Iterator[None]:
    """Let photographs keep that many pixels for one of the view."""
    kept = sampling.SHRINK_MARGIN
    sampling.SHRINK_MARGIN = value
    try:
        yield
    finally:
        sampling.SHRINK_MARGIN = kept


def differences(path: Path, plan: ViewPlan, *, index: int, epochs: int) -> list[tuple[int, float, float]]:
    """Return of every view its photograph's divisor, and by how many grey levels it differs: mean, 99 of 100."""
    photograph = open_file(path, 3)
    source_px = (photograph.width_px, photograph.height_px)
    versions = {shrink: photograph.decode(shrink) for shrink in (1, 2, 4, 8)}
    found = []
    for epoch in range(epochs):
        rng = stream(Purpose.VIEWS, seed=0, epoch=epoch, index=index)
        draw = sampling.draw_views(rng, plan, height=source_px[1], width=source_px[0])
        shrink = sampling.needed_shrink(draw, plan)
        for box, spec in zip(sampling.on_grid(draw, shrink, source_px).boxes, plan.views, strict=True):
            crop = partial(sampling.resized_crop, box=box, size_px=spec.size_px, interpolation=spec.interpolation)
            levels = (crop(versions[shrink], shrink=shrink).float() - crop(versions[1]).float()).abs()
            found.append((shrink, levels.mean().item(), levels.flatten().quantile(0.99).item()))
    return found


def margins(paths: Sequence[Path], *, rounds: int, epochs: int) -> list[str]:
    """Measure what margins cost and return the lines of a table."""
    plan, lines = plan_of("densecl"), []
    load = ours(paths, plan, photometrics=False)

    def go(margin: float) -> None:
        with margin_of(margin):
            load()

    seconds = take_turns({f"{margin:g}": partial(go, margin) for margin in MARGINS}, rounds=rounds)
    for margin in MARGINS:
        with margin_of(margin):
            found = [
                one for index, path in enumerate(paths) for one in differences(path, plan, index=index, epochs=epochs)
            ]
        shrinks, means, most = zip(*found, strict=True)
        shares = ", ".join(f"1/{shrink}: {100 * shrinks.count(shrink) / len(found):.0f} %" for shrink in (2, 4, 8))
        took = f"{1e3 * median(seconds[f'{margin:g}']) / len(paths):.1f}"
        lines.append(f"| {margin:g} | {shares} | {took} | {mean(means):.2f} | {mean(most):.1f} | {max(most):.0f} |")
        print(lines[-1], flush=True)
    return lines


def versions() -> str:
    """Return the versions of what is compared."""
    names = []
    for name in ("simplejpeg", "torchvision", "pillow", "PyTurboJPEG"):
        try:
            names.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(names)


def main(arguments: Sequence[str]) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.decoding", description=__doc__)
    parser.add_argument("--images", type=int, default=16, help="number of images of 640 x 480; half as many large ones")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds of all forms")
    parser.add_argument("--epochs", type=int, default=8, help="number of draws of views per large image")
    parser.add_argument("--turbojpeg-library", help="path of libturbojpeg, if the system does not find it")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed_decoding.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bindings = decoders(options.turbojpeg_library)
    lines = ["| photograph | size | binding | ms an image | times ours |", "|---|---|---|---:|---:|"]
    second = [
        "| margin | decoded at | ms for two views | mean difference | 99 of 100, mean over views | largest of views |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        small = write_photographs(Path(folder) / "small", options.images, size=SMALL)
        large = write_photographs(Path(folder) / "large", max(options.images // 2, 1), size=LARGE)
        for title, paths in {"640 x 480": small, "12 megapixels": large}.items():
            lines += table([path.read_bytes() for path in paths], title, bindings, rounds=options.rounds)
        second += margins(large, rounds=options.rounds, epochs=options.epochs)
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    command = " ".join(["python -m benchmarks.speed.decoding", *arguments])
    first_part, _, second_part = about.rpartition("\n\n")
    parts = ["# Decoding JPEGs", f"{first_part}\n\nRatios are medians of rounds, with the smallest and largest."]
    parts += ["\n".join(lines), second_part, "\n".join(second), f"{foot(command).rstrip()}  \nBindings: {versions()}\n"]
    options.out.write_text("\n\n".join(parts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
