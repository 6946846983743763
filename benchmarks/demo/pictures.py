"""The demo's pictures: the scores, test images with truth and predictions, and decoder maps before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.demo.settings import CLASSES, DemoSettings
from benchmarks.demo.trial import Outcome
from dovetail.downstream.labels.labelled import LabelledSet
from dovetail.downstream.segment.loop import SegmentOptions, normalised, predict

matplotlib.use("Agg")

COLOURS = ("#EEEEEE", *(matplotlib.colors.to_hex(one) for one in matplotlib.colormaps["tab20"].colors))
CLASS_MAP = ListedColormap(COLOURS[: len(CLASSES)])
ROW_COLOURS = ("#999999", "#56B4E9", "#E69F00", "#D55E00")
TEXT = "#222222"
GAPS = {"wspace": 0.04, "hspace": 0.04, "left": 0.02, "right": 0.98}
Lines = list[tuple[str, NDArray[np.generic], bool]]
"""Rows of a sheet: words, pictures, and whether they are masks."""


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return its path."""
    figure.savefig(path, dpi=110, facecolor="white", bbox_inches="tight", pad_inches=0.15)
    return path


def sheet(lines: Lines) -> Figure:
    """Return rows of pictures with words to the left of each row."""
    columns = len(lines[0][1])
    figure = Figure(figsize=(1.5 * columns, 1.5 * len(lines)))
    grid = figure.subplots(len(lines), columns, squeeze=False, gridspec_kw=GAPS)
    for axes_of_line, (title, pictures, is_mask) in zip(grid, lines, strict=True):
        for axes, picture in zip(axes_of_line, pictures, strict=True):
            colours = {"cmap": CLASS_MAP, "vmin": -0.5, "vmax": len(CLASSES) - 0.5} if is_mask else {}
            axes.imshow(picture, interpolation="nearest", **colours)
            bare(axes)
        first = axes_of_line[0]
        first.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=10, color=TEXT, labelpad=8)
    return figure


def bare(axes: Axes) -> None:
    """Remove ticks and frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def predictions_picture(
    outcomes: Sequence[Outcome], data: LabelledSet, path: Path, *, options: SegmentOptions, examples: int = 6
) -> Path:
    """Draw `examples` images, one a column: the image, the truth, and each row's prediction (first seed)."""
    items = [data[index] for index in range(min(examples, len(data)))]
    images = torch.stack([item.image for item in items])
    masks = torch.stack([item.mask for item in items]).numpy()
    lines: Lines = [("image", images.permute(0, 2, 3, 1).numpy(), False), ("truth", masks, True)]
    for one in outcomes:
        lines.append((one.row.name.replace(", ", ",\n"), predict(one.model.eval(), images, options).numpy(), True))
    figure = sheet(lines)
    handles = [Patch(color=colour, label=name) for colour, name in zip(COLOURS, CLASSES, strict=False)]
    figure.legend(handles=handles, loc="upper center", ncol=6, frameon=False, fontsize=9, bbox_to_anchor=(0.5, 0.1))
    return save(figure, path)


def scores_picture(outcomes: Sequence[Outcome], settings: DemoSettings, path: Path) -> Path:
    """Draw the mean of every column of the table as bars, a group for each column, with every seed as a dot."""
    most = max(settings.labels)
    groups = [
        (f"frozen {tap}, {most} labels", [one.frozen[tap, most] for one in outcomes]) for tap in ("encoder", "decoder")
    ]
    groups.append((f"fine-tuned with {most} labels", [tuple(one.mious) for one in outcomes]))
    figure = Figure(figsize=(7.2, 0.42 * len(groups) * (len(outcomes) + 1) + 0.8))
    axes = figure.subplots()
    place, ticks = 0.0, []
    for title, scores in groups:
        axes.text(0, place, title, fontsize=10, fontweight="bold", va="center", color=TEXT)
        for values, colour in zip(scores, ROW_COLOURS, strict=True):
            place += 1
            mean = sum(values) / len(values)
            axes.barh(place, mean, color=colour, height=0.72)
            axes.plot(values, [place] * len(values), "o", ms=4, mfc="white", mec=TEXT, mew=0.9)
            axes.text(max(values) + 0.4, place, f"{mean:.1f}", va="center", fontsize=9, color=TEXT)
            ticks.append(place)
        place += 1.2
    axes.set_yticks(ticks, [one.row.name for one in outcomes] * len(groups), fontsize=9)
    axes.set_xlabel("mIoU on test images, % (bar: mean, dots: seeds)", fontsize=9)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return save(figure, path)


def features_picture(
    models: Sequence[tuple[str, nn.Module]],
    data: LabelledSet,
    path: Path,
    *,
    options: SegmentOptions,
    examples: int = 6,
) -> Path:
    """Draw decoder maps of test images: the first three principal components as red, green and blue."""
    images = torch.stack([data[index].image for index in range(min(examples, len(data)))])
    lines: Lines = [("image", images.permute(0, 2, 3, 1).numpy(), False)]
    lines += [(name, principal_colours(decoder_map(model, images, options)).numpy(), False) for name, model in models]
    return save(sheet(lines), path)


@torch.no_grad()
def decoder_map(model: nn.Module, images: Tensor, options: SegmentOptions) -> Tensor:
    """Return the decoder's finest map of uint8 images [B, 3, H, W]: [B, C, H / 4, W / 4]."""
    kept: list[Tensor] = []
    handle = model.get_submodule("decoder").register_forward_hook(lambda module, inputs, output: kept.append(output))
    model.eval()(normalised(images, options))
    handle.remove()
    return kept[0].float()


def principal_colours(features: Tensor) -> Tensor:
    """Return [B, H, W, 3] in [0, 1]: three principal components over all images, each over its central 96 per cent."""
    batch, channels, height, width = features.shape
    flat = features.permute(0, 2, 3, 1).reshape(-1, channels)
    flat = flat - flat.mean(0)
    directions = torch.linalg.svd(flat, full_matrices=False).Vh[:3]
    directions = directions * directions.sum(1, keepdim=True).sign()  # a fixed sign, so that colours repeat
    values = flat @ directions.T
    low, high = torch.quantile(values, torch.tensor([0.02, 0.98]), dim=0)
    colours: Tensor = ((values - low) / (high - low)).clamp(0, 1)
    return colours.reshape(batch, height, width, 3)
