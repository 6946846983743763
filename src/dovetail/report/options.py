"""Options of `dovetail embed` and `dovetail visualize`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dovetail.options import COUNT, MOST_PICTURES, MOST_SIDE_PX, Options, Range, option
from dovetail.sizes import Size, as_size

Accelerator = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(Options):
    """Options of `dovetail embed`."""

    run: str | Path = option("", "Run folder with exported weights.", required=True, existing=True)
    data: Any = option(
        None,
        "Images: a folder, a .zip or .tar, a text file with one path per line, several of them, or in Python a "
        "sequence of paths or a dataset.",
        several=True,
        existing=True,
    )
    out: str | Path = option(
        "",
        "Output file: .npy (with the image paths in NAME.paths.json) or .parquet with the columns path and embedding.",
        required=True,
    )
    side_px: Size | None = option(
        None,
        "Side length of the centre crops in pixels, or height x width, such as 64x128. Default: the size used in "
        "pre-training.",
        Range(8, most=MOST_SIDE_PX),
        reads=as_size,
    )
    model: Any = option(None, "For a run of your own module: package.module:Class or (in Python) the module.")
    encoder: str | None = option(
        None,
        "For your own module: dotted path of the encoder, or several comma-separated paths. Default: the run's.",
    )
    batch_size: int = option(64, "Images in one forward pass.", Range(1, most=1 << 20))
    accelerator: Accelerator = option("auto", "Device type.")
    page_map: Literal["none", "pca", "tsne"] = option(
        "none",
        "Add a two-dimensional map of the embeddings to the run's report.html, with principal components or t-SNE "
        "(which needs scikit-learn).",
    )


@dataclass(frozen=True, kw_only=True)
class SheetOptions(Options):
    """Options of all sheets of images."""

    run: str | Path = option("", "Run folder.", required=True, existing=True)
    images: Any = option(None, "Folder of images.", existing=True)
    out: str | Path = option("", "Output folder.", required=True)
    most: int = option(6, "Number of images to draw, evenly spaced over the folder.", Range(1, most=MOST_PICTURES))
    side_px: Size | None = option(
        None,
        "Side length in pixels that images are resized to, or height x width, such as 64x128. Default: the view size "
        "for ViTs, twice the view size for CNNs.",
        Range(8, most=MOST_SIDE_PX),
        reads=as_size,
    )
    model: Any = option(None, "The module of the run, if it was passed in Python.")


@dataclass(frozen=True, kw_only=True)
class PcaOptions(SheetOptions):
    """Options of `dovetail visualize pca`."""

    init: str | None = option(
        None,
        '"imagenet" allows the download of these weights, for a run that started from them.',
    )


@dataclass(frozen=True, kw_only=True)
class SlotsOptions(SheetOptions):
    """Options of `dovetail visualize slots`."""


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(SheetOptions):
    """Options of `dovetail visualize attention`."""


@dataclass(frozen=True, kw_only=True)
class CorrespondenceOptions(SheetOptions):
    """Options of `dovetail visualize correspondence`."""

    between: Literal["views", "images"] = option(
        "views",
        "Match two views of each image (which also measures the error) or pairs of consecutive images.",
    )
    most: int = option(4, "Number of pairs to draw, evenly spaced over the folder.", Range(1, most=MOST_PICTURES))
    lines: int = option(24, "Number of best matches to draw in each pair.", COUNT)
    init: str | None = option(
        None,
        '"imagenet" allows the download of these weights, for a run that started from them.',
    )


@dataclass(frozen=True, kw_only=True)
class NeighboursOptions(SheetOptions):
    """Options of `dovetail visualize neighbours`."""

    count: int = option(5, "Number of neighbours of each image.", Range(1, most=MOST_PICTURES))
    batch_size: int = option(64, "Images in one forward pass.", Range(1, most=1 << 20))
