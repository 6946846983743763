"""`dovetail visualize`: what a run's network sees, as sheets of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from dovetail.data.values import values_within
from dovetail.errors import DovetailError, tell
from dovetail.locking import in_use
from dovetail.networks.network import Network
from dovetail.report.features import coloured, maps_of, shown_taps
from dovetail.report.page import picture_side
from dovetail.report.pictures_attention import attention_sheet, query_sheet
from dovetail.report.pictures_correspondence import photograph_pair, view_pair
from dovetail.report.pictures_neighbours import neighbours_sheet
from dovetail.report.pictures_slots import slot_sheet
from dovetail.report.pixels import as_view, photographs_in, sample_squares, shown
from dovetail.report.restored import Restored, restore
from dovetail.report.sheets import Sheet, rows_of, short
from dovetail.transfer.ranges import check_ranges


class Photos(NamedTuple):
    """Readable photographs of a source: their names, and uint8 squares [C, S, S]."""

    names: list[str]
    squares: list[Tensor]


def photos_of(images: Any, run: Restored, *, most: int, side_px: int | None, finer: bool = False) -> Photos:
    """Return up to `most` photographs, evenly spaced; `finer` takes twice the run's size where the network can.

    Raises:
        DovetailError: For no readable photograph, or a size that does not fit.
    """
    source = photographs_in(images)
    side = side_px or (picture_side(run.after, run.side_px) if finer else run.side_px)
    if side < run.after.size_multiple or side % run.after.size_multiple:
        raise DovetailError(f"Photographs of {side} px do not fit; give a multiple of {run.after.size_multiple}.")
    with values_within(run.options.value_range):
        photos = Photos(*sample_squares(source, count=most, side_px=side, channels=run.in_channels))
    rows_of(photos.names, 1, "A picture")
    return photos


def pictures_in(asked: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Look at the numbers that a command was given, and hold its folder."""
    check_ranges(asked)
    return in_use(Path(asked["out"]), keep=False)


def written(*paths: Path) -> list[Path]:
    """Print and return what was written."""
    for path in paths:
        tell(path)
    return list(paths)


def as_module(model: Any) -> nn.Module | None:
    """Return a module given in Python; a name says nothing that the run does not say itself."""
    if model is not None and not isinstance(model, nn.Module):
        raise DovetailError(f"model is a {type(model).__name__}; leave it out, or give the run's torch.nn.Module.")
    return model


def pca(
    *,
    run: str | Path,
    images: Any = None,
    out: str | Path,
    most: int = 6,
    side_px: int | None = None,
    init: str | None = None,
    model: Any = None,
) -> list[Path]:
    """Draw the encoder's and the decoder's maps before and after pre-training, by their principal components.

    Args:
        run: Folder of the run.
        images: Folder of photographs.
        out: Folder for the pictures.
        most: Photographs to draw, evenly spaced over the folder.
        side_px: Side in pixels to which photographs are brought; twice the views' for CNNs unless given.
        init: For a run that began with ImageNet weights: "imagenet" again, which allows their download.
        model: In Python, for a run of a module of your own: the same module.

    Returns:
        The file, pca.png.

    Raises:
        DovetailError: For a folder without a run or photographs.
    """
    with pictures_in(locals()):
        restored = restore(run, model=as_module(model), init=init)
        photos = photos_of(images, restored, most=most, side_px=side_px, finer=True)
        taps = shown_taps(restored.after.taps, restored.recipe)
        view = as_view(photos.squares, restored.recipe.views, restored.after)
        before, after = (_coloured(network, view, taps) for network in (restored.before, restored.after))
        title = f"First three principal components, before and after {restored.steps} of {restored.options.method}"
        sheet = Sheet(len(photos.names), 1 + 2 * len(taps), title=title)
        for row, (name, pixels) in enumerate(zip(photos.names, photos.squares, strict=True)):
            sheet.show(row, 0, shown(pixels), title=short(name), smooth=True)
            for column, tap in enumerate(taps):
                part = restored.after.taps[tap].part
                for offset, (when, maps) in enumerate((("before", before[tap]), ("after", after[tap]))):
                    words = f"{part} {tap}, {when}\n{maps.share:.0%} of the variance" if row == 0 else ""
                    sheet.show(row, 1 + 2 * column + offset, maps.pictures[row], title=words)
        return written(sheet.write(Path(out) / "pca.png"))


def _coloured(network: Network, view: Any, taps: list[str]) -> dict[str, Any]:
    return {tap: coloured(maps) for tap, maps in maps_of(network, view, taps).items()}


def slots(
    *,
    run: str | Path,
    images: Any = None,
    out: str | Path,
    most: int = 6,
    side_px: int | None = None,
    model: Any = None,
) -> list[Path]:
    """Draw which slot of SlotCon each cell belongs to, as coloured overlays.

    Args:
        run: Folder of a run whose recipe has SlotCon's terms.
        images: Folder of photographs.
        out: Folder for the pictures.
        most: Photographs to draw, evenly spaced over the folder.
        side_px: Side in pixels to which photographs are brought; twice the views' for CNNs unless given.
        model: In Python, for a run of a module of your own: the same module.

    Returns:
        One file for each term, slots-TERM.png.

    Raises:
        DovetailError: For a run without slots.
    """
    with pictures_in(locals()):
        restored = restore(run, model=as_module(model))
        photos = photos_of(images, restored, most=most, side_px=side_px, finer=True)
        sheets = slot_sheet(restored, photos.names, photos.squares)
        return written(*(sheet.write(Path(out) / f"slots-{term}.png") for term, sheet in sheets.items()))


def attention(
    *,
    run: str | Path,
    images: Any = None,
    out: str | Path,
    most: int = 6,
    side_px: int | None = None,
    model: Any = None,
) -> list[Path]:
    """Draw what a ViT's class token and ADCLR's query tokens attend to in its last block.

    Args:
        run: Folder of a run of a ViT.
        images: Folder of photographs.
        out: Folder for the pictures.
        most: Photographs to draw, evenly spaced over the folder.
        side_px: Side in pixels to which photographs are brought; the views' unless given.
        model: In Python, for a run of a module of your own: the same module.

    Returns:
        attention.png, and queries.png where the ViT takes query tokens.

    Raises:
        DovetailError: For a model that is no ViT.
    """
    with pictures_in(locals()):
        restored = restore(run, model=as_module(model))
        photos = photos_of(images, restored, most=most, side_px=side_px)
        paths = [attention_sheet(restored, photos.names, photos.squares).write(Path(out) / "attention.png")]
        if "queries" in restored.after.taps:
            paths.append(query_sheet(restored, photos.names, photos.squares).write(Path(out) / "queries.png"))
        return written(*paths)


def correspondence(
    *,
    run: str | Path,
    images: Any = None,
    out: str | Path,
    between: Literal["views", "photographs"] = "views",
    most: int = 4,
    lines: int = 24,
    side_px: int | None = None,
    init: str | None = None,
    model: Any = None,
) -> list[Path]:
    """Draw which cells of two pictures match best, as lines, before and after pre-training.

    Args:
        run: Folder of the run.
        images: Folder of photographs.
        out: Folder for the pictures.
        between: Two views of each photograph, where the right answer is known and the error is measured; or
            photographs two by two in their order.
        most: Pairs to draw, evenly spaced over the folder.
        lines: Best matches to draw in each.
        side_px: Side in pixels to which photographs are brought; of views, the run's own size counts.
        init: For a run that began with ImageNet weights: "imagenet" again, which allows their download.
        model: In Python, for a run of a module of your own: the same module.

    Returns:
        One file for each pair, correspondence-01.png and so on.

    Raises:
        DovetailError: For too few photographs.
    """
    with pictures_in(locals()):
        restored = restore(run, model=as_module(model), init=init)
        if between == "views":
            with values_within(restored.options.value_range):
                sheets = list(view_pair(restored, photographs_in(images), most=most, lines=lines))
        else:
            photos = photos_of(images, restored, most=2 * most, side_px=side_px, finer=True)
            rows_of(photos.names, 2, "A pair")
            sheets = photograph_pair(restored, photos.names, photos.squares, lines=lines)
        return written(
            *(
                sheet.write(Path(out) / f"correspondence-{number:02d}.png")
                for number, sheet in enumerate(sheets, start=1)
            )
        )


def neighbours(
    *,
    run: str | Path,
    images: Any = None,
    out: str | Path,
    most: int = 6,
    count: int = 5,
    side_px: int | None = None,
    batch_size: int = 64,
) -> list[Path]:
    """Draw the photographs that are nearest to some of them among all, as a contact sheet.

    Args:
        run: Folder of the run, with exported weights.
        images: Folder of photographs.
        out: Folder for the pictures.
        most: Photographs whose neighbours are drawn, evenly spaced over the folder.
        count: Neighbours of each.
        side_px: Side in pixels to which photographs are brought; that of pre-training unless given.
        batch_size: Photographs in one forward pass.

    Returns:
        The file, neighbours.png.

    Raises:
        DovetailError: For too few photographs.
    """
    with pictures_in(locals()):
        sheet = neighbours_sheet(run, images, most=most, count=count, side_px=side_px, batch_size=batch_size)
        return written(sheet.write(Path(out) / "neighbours.png"))
