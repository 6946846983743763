"""Options of `dovetail evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dovetail.downstream.options import RATE, MachineOptions, MeasureOptions
from dovetail.options import COUNT, MOST_SIDE_PX, NOT_NEGATIVE, Range, option


@dataclass(frozen=True, kw_only=True)
class EvaluateKnnOptions(MachineOptions, MeasureOptions):
    """Options of `dovetail evaluate knn`."""

    data: str | Path = option(
        "",
        "Folder with train/CLASS/ and val/CLASS/ images, as ImageNet's, or a saved Hugging Face dataset.",
    )
    out: str | Path = option("", "Folder for results.json and the features; RUN/evaluate-knn unless given.")
    k: Sequence[int] = option(
        (10, 20, 100, 200),
        "Numbers of neighbours; those beyond the number of training images are left out.",
        COUNT,
    )
    temperature: float = option(0.07, "Temperature of the votes' weights exp(similarity / temperature).", RATE)
    image_size: int | None = option(
        None,
        "Side of the images in pixels; the run's unless given. The shorter side is resized to 256/224 of it.",
        Range(16, most=MOST_SIDE_PX),
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateLinearOptions(MachineOptions, MeasureOptions):
    """Options of `dovetail evaluate linear`."""

    data: str | Path = option(
        "",
        "Folder with train/CLASS/ and val/CLASS/ images, as ImageNet's, or a saved Hugging Face dataset.",
    )
    out: str | Path = option("", "Folder for results.json and the features; RUN/evaluate-linear unless given.")
    lr: Sequence[float] = option(
        (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        "Learning rates to try; the best on a held-out tenth of the training images is taken and stated.",
        RATE,
    )
    epochs: int = option(100, "Passes over the features.", COUNT)
    batch_size: int = option(1024, "Features in a step.", Range(1, most=1 << 20))
    weight_decay: float = option(0.0, "Weight decay of the classifier's weights.", NOT_NEGATIVE)
    blocks: int = option(4, "For a ViT: the last blocks whose class tokens are the features.", COUNT)
    image_size: int | None = option(
        None,
        "Side of the images in pixels; the run's unless given. The shorter side is resized to 256/224 of it.",
        Range(16, most=MOST_SIDE_PX),
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateDenseOptions(MachineOptions, MeasureOptions):
    """Options of `dovetail evaluate dense`."""

    data: str | Path = option(
        "",
        "A labelled dataset for segmentation, as of `finetune segment`; or folders of frames, as DAVIS has them.",
    )
    out: str | Path = option("", "Folder for results.json; RUN/evaluate-dense unless given.")
    model: str | None = option(None, "Name of a model, instead of a run.")
    init: str | None = option(
        None,
        "Weights of that model: a .safetensors file, a run's folder, or \"imagenet\" for the library's encoder,"
        " with a decoder drawn from the seed; unless given, all weights are drawn from it.",
    )
    at: Sequence[str] = option(
        ("auto",),
        "Maps to measure: encoder (its deepest), decoder (its finest), a name such as c4 or p2, or several "
        'side by side, such as c4+c5; "auto" is the encoder, and the decoder where there is one.',
    )
    protocols: Sequence[str] = option(
        ("auto",),
        "Ways to measure: linear (a linear classifier of cells), retrieval (labels of the nearest labelled "
        "cells), clusters (k-means, matched to classes), propagation (labels carried from frame to frame); "
        '"auto" is the last on folders of frames, the others on images.',
    )
    labels: Sequence[float] = option(
        (1.0,),
        "Training images with labels: up to 1 a share of them, above 1 their number; nested, class-balanced.",
        RATE,
    )
    seeds: int = option(1, "Times to repeat, with other labelled images and starting centres.", COUNT)
    image_size: int | None = option(
        None,
        "Side in pixels that whole images are resized to; the run's unless given.",
        Range(16, most=MOST_SIDE_PX),
    )
    classes: int | None = option(
        None,
        "Number of classes, for images beside masks; counted in the masks unless given.",
        COUNT,
    )
    ignore_index: int = option(
        255,
        "Label of pixels that do not count, for images beside masks and for frames; -1 for none.",
        Range(-1, 65_535),
    )
    lr: Sequence[float] = option(
        (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        "For linear: learning rates to try; the best on a held-out tenth of the labelled images is taken.",
        RATE,
    )
    weight_decay: Sequence[float] = option(
        (0.0001, 0.01),
        "For linear: weight decays to try with each rate.",
        NOT_NEGATIVE,
    )
    steps: int = option(400, "For linear: optimiser steps.", COUNT)
    k: int = option(30, "For retrieval: nearest cells.", COUNT)
    temperature: float = option(0.02, "For retrieval: temperature of the softmax over their similarities.", RATE)
    memory: int = option(20000, "For retrieval: labelled cells in the memory bank at most.", COUNT)
    clusters: Sequence[int] = option(
        (0, 500),
        "For clusters: numbers of clusters; 0 is the number of classes.",
        NOT_NEGATIVE,
    )
    radius: int = option(12, "For propagation: cells to each side that labels are taken from.", COUNT)
