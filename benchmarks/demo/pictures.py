"""The demo's pictures: test mosaics with truth and predictions, the scores, and decoder features before and after.

Colours are told apart by readers with any kind of colour vision: Okabe and Ito's eight and two of Tol's.
"""

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

from benchmarks.demo.mosaics import TEXTURES
from benchmarks.demo.trial import Outcome
from dovetail.transfer.labelled import LabelledSet
from dovetail.transfer.segment import SegmentOptions, normalised, predict

matplotlib.use("Agg")

COLOURS = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#4D4D4D",
    "#882255",
    "#BBCCEE",
)
CLASS_MAP = ListedColormap(COLOURS)
TEXT = "#222222"
GAPS = {"wspace": 0.04, "hspace": 0.04, "left": 0.02, "right": 0.98}


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return its path."""
    figure.savefig(path, dpi=110, facecolor="white", bbox_inches="tight", pad_inches=0.15)
    return path


def bare(axes: Axes) -> None:
    """Take ticks and frame away."""
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def predictions_picture(
    outcomes: Sequence[Outcome], data: LabelledSet, path: Path, *, options: SegmentOptions, examples: int = 6
) -> Path:
    """Draw `examples` mosaics, one a column: the mosaic, the truth, and each arm's prediction (seed 0)."""
    items = [data[index] for index in range(examples)]
    images = torch.stack([item.image for item in items])
    rows: list[tuple[str, NDArray[np.generic], bool]] = [
        ("mosaic", images.permute(0, 2, 3, 1).numpy(), False),
        ("truth", torch.stack([item.mask for item in items]).numpy(), True),
    ]
    for outcome in outcomes:
        labels = predict(outcome.model.eval(), images, options).numpy()
        rows.append((f"{outcome.arm.name}\n{outcome.mean:.1f} mIoU", labels, True))
    figure = Figure(figsize=(1.5 * examples, 1.5 * len(rows) * 1.25))
    grid = figure.subplots(len(rows), examples, squeeze=False, gridspec_kw=GAPS)
    for line, (title, pictures, is_mask) in zip(grid, rows, strict=True):
        for axes, picture in zip(line, pictures, strict=True):
            colours = {"cmap": CLASS_MAP, "vmin": -0.5, "vmax": len(TEXTURES) - 0.5} if is_mask else {}
            axes.imshow(picture, interpolation="nearest", **colours)
            bare(axes)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=10, color=TEXT, labelpad=8)
    handles = [Patch(color=colour, label=one.name) for colour, one in zip(COLOURS, TEXTURES, strict=True)]
    figure.legend(handles=handles, loc="upper center", ncol=5, frameon=False, fontsize=9, bbox_to_anchor=(0.5, 0.1))
    return save(figure, path)


def scores_picture(groups: Sequence[tuple[int, Sequence[Outcome]]], path: Path) -> Path:
    """Draw mean test mIoU as bars, one group for each number of labels, with every seed as a dot."""
    figure = Figure(figsize=(7.2, 0.42 * sum(len(outcomes) + 1 for _, outcomes in groups) + 0.8))
    axes = figure.subplots()
    colours = ("#999999", "#56B4E9", "#0072B2", "#D55E00")
    place, ticks, names = 0.0, [], []
    for labels, outcomes in groups:
        axes.text(0, place, f"{labels} labelled mosaics", fontsize=10, fontweight="bold", va="center", color=TEXT)
        for outcome, colour in zip(outcomes, colours, strict=True):
            place += 1
            axes.barh(place, outcome.mean, color=colour, height=0.72)
            axes.plot(outcome.mious, [place] * len(outcome.mious), "o", ms=4, mfc="white", mec=TEXT, mew=0.9)
            axes.text(max(outcome.mious) + 0.8, place, f"{outcome.mean:.1f}", va="center", fontsize=9, color=TEXT)
            ticks.append(place)
            names.append(outcome.arm.name)
        place += 1.2
    axes.set_yticks(ticks, names, fontsize=9)
    axes.set_xlabel("mIoU on test mosaics, % (bar: mean, dots: seeds)", fontsize=9)
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
    """Draw the decoder's features of mosaics, their first three principal components as red, green and blue."""
    images = torch.stack([data[index].image for index in range(examples)])
    figure = Figure(figsize=(1.5 * len(images), 1.5 * (len(models) + 1) * 1.25))
    grid = figure.subplots(len(models) + 1, len(images), squeeze=False, gridspec_kw=GAPS)
    rows: list[tuple[str, NDArray[np.generic]]] = [("mosaic", images.permute(0, 2, 3, 1).numpy())]
    rows += [(name, principal_colours(decoder_features(model, images, options)).numpy()) for name, model in models]
    for line, (title, pictures) in zip(grid, rows, strict=True):
        for axes, picture in zip(line, pictures, strict=True):
            axes.imshow(picture, interpolation="nearest")
            bare(axes)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=10, color=TEXT, labelpad=8)
    return save(figure, path)


@torch.no_grad()
def decoder_features(model: nn.Module, images: Tensor, options: SegmentOptions) -> Tensor:
    """Return a Unet's decoder features at a quarter of the pixels' resolution, [B, C, H / 4, W / 4]."""
    kept: list[Tensor] = []
    block = model.get_submodule("decoder.blocks.2")
    handle = block.register_forward_hook(lambda module, inputs, output: kept.append(output))
    # Batch statistics, as there are none of an untrained network.
    model.train()(normalised(images, options))
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
