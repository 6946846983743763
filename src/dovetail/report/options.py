"""Options of `dovetail embed` and `dovetail visualize`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dovetail.options import COUNT, MOST_PICTURES, MOST_SIDE_PX, Options, Range, option

Accelerator = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(Options):
    """Options of `dovetail embed`."""

    run: str | Path = option("", "Run folder with exported weights.", required=True)
    data: Any = option(
        None,
        "Images: a folder, a .zip or .tar, a text file with one path per line, or in Python a sequence of paths or a "
        "dataset.",
    )
    out: str | Path = option(
        "",
        "File to write: .npy, with the paths in NAME.paths.json, or .parquet with the columns path and embedding.",
        required=True,
    )
    side_px: int | None = option(
        None,
        "Side of the centre crops in pixels. Default: that of pre-training.",
        Range(8, most=MOST_SIDE_PX),
    )
    batch_size: int = option(64, "Images in one forward pass.", Range(1, most=1 << 20))
    accelerator: Accelerator = option("auto", "Device type.")
    page_map: Literal["none", "pca", "tsne"] = option(
        "none",
        "Add a two-dimensional map of the embeddings to the run's page report.html, by principal components or by "
        "t-SNE, which needs scikit-learn.",
    )


@dataclass(frozen=True, kw_only=True)
class SheetOptions(Options):
    """What every sheet of pictures takes."""

    run: str | Path = option("", "Run folder.", required=True)
    images: Any = option(None, "Folder of images.")
    out: str | Path = option("", "Folder for the pictures.", required=True)
    most: int = option(6, "Images to draw, evenly spaced over the folder.", Range(1, most=MOST_PICTURES))
    side_px: int | None = option(
        None,
        "Side in pixels that images are resized to. Default: the views' side for ViTs, and twice that for CNNs.",
        Range(8, most=MOST_SIDE_PX),
    )
    model: Any = option(None, "In Python, for a run of your own module: the same module.")


@dataclass(frozen=True, kw_only=True)
class PcaOptions(SheetOptions):
    """Options of `dovetail visualize pca`."""

    init: str | None = option(
        None,
        'For a run that started from ImageNet weights: "imagenet", which allows their download.',
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
        "Match two views of each image, where the error is known and measured, or pairs of images in their order.",
    )
    most: int = option(4, "Pairs to draw, evenly spaced over the folder.", Range(1, most=MOST_PICTURES))
    lines: int = option(24, "Best matches to draw in each pair.", COUNT)
    init: str | None = option(
        None,
        'For a run that started from ImageNet weights: "imagenet", which allows their download.',
    )


@dataclass(frozen=True, kw_only=True)
class NeighboursOptions(SheetOptions):
    """Options of `dovetail visualize neighbours`."""

    count: int = option(5, "Neighbours of each image.", Range(1, most=MOST_PICTURES))
    batch_size: int = option(64, "Images in one forward pass.", Range(1, most=1 << 20))
