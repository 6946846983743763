"""`dovetail visualize`: visualises the features of a run's network as sheets of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from dovetail.data.reading.recognise import SUFFIXES
from dovetail.data.reading.values import values_within
from dovetail.errors import OptionsError, tell, unknown_name
from dovetail.files.locking import in_use
from dovetail.files.writable import refuse_others
from dovetail.networks.network import Network
from dovetail.options import takes
from dovetail.report.features import coloured, maps_of, shown_taps
from dovetail.report.options import AttentionOptions, CorrespondenceOptions, NeighboursOptions, PcaOptions, SlotsOptions
from dovetail.report.page import picture_size
from dovetail.report.pictures_attention import attention_sheet, query_sheet
from dovetail.report.pictures_correspondence import image_pair, view_pair
from dovetail.report.pictures_neighbours import neighbours_sheet
from dovetail.report.pictures_slots import slot_sheet
from dovetail.report.pixels import as_view, central_crops, images_in, shown
from dovetail.report.sheets import Sheet, rows_of, short
from dovetail.run.restored import Restored, restore
from dovetail.sizes import Size, sides, size_in_words

PICTURES = (".png", ".jpg", ".jpeg", ".svg", ".pdf")
WRITTEN = ("pca.png", "slots-*.png", "attention.png", "queries.png", "correspondence-*.png", "neighbours.png")
"""Names of the pictures that these commands write."""


class Photos(NamedTuple):
    """Readable images of a source: names and uint8 crops [C, h, w]."""

    names: list[str]
    crops: list[Tensor]


def photos_of(images: Any, run: Restored, *, most: int, side_px: Size | None, finer: bool = False) -> Photos:
    """Return up to `most` images, evenly spaced. `finer` uses twice the view size if the network supports it.

    Raises:
        DovetailError: No image is readable, or the size is unsupported.
    """
    source = images_in(images)
    size = side_px or (picture_size(run.after, run.size_px) if finer else run.size_px)
    step = run.after.size_multiple
    if any(side < step or side % step for side in sides(size)):
        raise OptionsError(f"--side-px expects a multiple of {step}, got {size_in_words(size)}.")
    with values_within(run.options.value_range):
        photos = Photos(*central_crops(source, count=most, size_px=size, channels=run.in_channels))
    rows_of(photos.names, 1, "A sheet")
    return photos


def written(*paths: Path) -> list[Path]:
    """Print and return the paths of the written files."""
    for path in paths:
        tell(path)
    return list(paths)


def as_module(model: Any) -> nn.Module | None:
    """Return the module that was passed in Python. Raise `OptionsError` for anything else."""
    if model is not None and not isinstance(model, nn.Module):
        raise OptionsError(f"model expects the run's torch.nn.Module or None, got {type(model).__name__}.")
    return model


def folder_of(out: str | Path) -> Path:
    """Return the output folder. Raise `OptionsError` for the name of a picture, or a folder with other images."""
    if Path(out).suffix.lower() in PICTURES and not Path(out).is_dir():
        raise OptionsError(f"--out {str(out)!r} is the name of a picture; specify the folder for the pictures.")
    refuse_others(Path(out), "visualize", lambda name: "/" in name or not is_image(name) or is_picture(name))
    return Path(out)


def is_image(name: str) -> bool:
    """Return whether a file has the suffix of an image."""
    return Path(name).suffix.lower() in SUFFIXES - {".npy"}  # `embed` writes .npy


def is_picture(name: str) -> bool:
    """Return whether a file has the name of a picture that this module writes."""
    return any(fnmatch(name, pattern) for pattern in WRITTEN)


@takes(PcaOptions)
def pca(options: PcaOptions) -> list[Path]:
    """Draw the principal components of encoder and decoder feature maps before and after pre-training.

    Returns:
        Path of the file pca.png.

    Raises:
        DovetailError: The folders contain no run or no images.
    """
    with in_use(folder_of(options.out), keep=False):
        restored = restore(options.run, model=as_module(options.model), init=options.init)
        photos = photos_of(options.images, restored, most=options.most, side_px=options.side_px, finer=True)
        taps = shown_taps(restored.after.taps, restored.recipe)
        view = as_view(photos.crops, restored.recipe.views, restored.after)
        before, after = (_coloured(network, view, taps) for network in (restored.before, restored.after))
        title = f"First three principal components before and after {restored.steps} of {restored.options.method}"
        sheet = Sheet(len(photos.names), 1 + 2 * len(taps), title=title)
        for row, (name, pixels) in enumerate(zip(photos.names, photos.crops, strict=True)):
            sheet.show(row, 0, shown(pixels), title=short(name), smooth=True)
            for column, tap in enumerate(taps):
                part = restored.after.taps[tap].part
                for offset, (when, maps) in enumerate((("before", before[tap]), ("after", after[tap]))):
                    words = f"{part} {tap}, {when}\n{maps.share:.0%} of the variance" if row == 0 else ""
                    sheet.show(row, 1 + 2 * column + offset, maps.pictures[row], title=words)
        return written(sheet.write(Path(options.out) / "pca.png"))


def _coloured(network: Network, view: Any, taps: list[str]) -> dict[str, Any]:
    return {tap: coloured(maps) for tap, maps in maps_of(network, view, taps).items()}


@takes(SlotsOptions)
def slots(options: SlotsOptions) -> list[Path]:
    """Draw the SlotCon slot of each cell as a coloured overlay.

    Returns:
        Paths of the files slots-TERM.png, one per term.

    Raises:
        DovetailError: The run has no slots.
    """
    with in_use(folder_of(options.out), keep=False):
        restored = restore(options.run, model=as_module(options.model))
        photos = photos_of(options.images, restored, most=options.most, side_px=options.side_px, finer=True)
        sheets = slot_sheet(restored, photos.names, photos.crops)
        return written(*(sheet.write(Path(options.out) / f"slots-{term}.png") for term, sheet in sheets.items()))


@takes(AttentionOptions)
def attention(options: AttentionOptions) -> list[Path]:
    """Draw the attention of a ViT's class token and of ADCLR's query tokens in the last block.

    Returns:
        Paths of attention.png and, if the method has query tokens, queries.png.

    Raises:
        DovetailError: The model is not a ViT.
    """
    with in_use(folder_of(options.out), keep=False):
        restored = restore(options.run, model=as_module(options.model))
        photos = photos_of(options.images, restored, most=options.most, side_px=options.side_px)
        paths = [attention_sheet(restored, photos.names, photos.crops).write(Path(options.out) / "attention.png")]
        if "queries" in restored.after.taps:
            paths.append(query_sheet(restored, photos.names, photos.crops).write(Path(options.out) / "queries.png"))
        return written(*paths)


@takes(CorrespondenceOptions)
def correspondence(options: CorrespondenceOptions) -> list[Path]:
    """Draw the best matches between cells of two images as lines, before and after pre-training.

    Returns:
        Paths of the files correspondence-01.png and so on, one per pair.

    Raises:
        DovetailError: There are too few images.
    """
    with in_use(folder_of(options.out), keep=False):
        restored = restore(options.run, model=as_module(options.model), init=options.init)
        if options.between == "views":
            with values_within(restored.options.value_range):
                sheets = list(view_pair(restored, images_in(options.images), most=options.most, lines=options.lines))
        else:
            photos = photos_of(options.images, restored, most=2 * options.most, side_px=options.side_px, finer=True)
            rows_of(photos.names, 2, "A pair")
            sheets = image_pair(restored, photos.names, photos.crops, lines=options.lines)
        return written(
            *(
                sheet.write(Path(options.out) / f"correspondence-{number:02d}.png")
                for number, sheet in enumerate(sheets, start=1)
            )
        )


@takes(NeighboursOptions)
def neighbours(options: NeighboursOptions) -> list[Path]:
    """Draw a contact sheet of images with their nearest neighbours.

    Returns:
        Path of the file neighbours.png.

    Raises:
        DovetailError: There are too few images.
    """
    with in_use(folder_of(options.out), keep=False):
        sheet = neighbours_sheet(
            options.run,
            options.images,
            most=options.most,
            count=options.count,
            side_px=options.side_px,
            batch_size=options.batch_size,
        )
        return written(sheet.write(Path(options.out) / "neighbours.png"))


KINDS: Mapping[str, Callable[..., list[Path]]] = {
    "pca": pca,
    "slots": slots,
    "attention": attention,
    "correspondence": correspondence,
    "neighbours": neighbours,
}


def visualize(kind: str, **options: Any) -> list[Path]:
    """Visualise the features of a run, as `dovetail visualize KIND`.

        dovetail.visualize("pca", run="runs/wheat", images="photos/", out="pictures/")

    Args:
        kind: pca, slots, attention, correspondence or neighbours (see `dovetail visualize --help`).
        options: Options of the command by name.

    Returns:
        The files that were written.

    Raises:
        DovetailError: The kind or an option is unknown, or the images cannot be drawn.
    """
    if kind not in KINDS:
        raise unknown_name("kind of picture", kind, KINDS)
    return KINDS[kind](**options)
