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
        "Folder with train/CLASS/ and val/CLASS/ images as in ImageNet, or a saved Hugging Face dataset.",
    )
    out: str | Path = option("", "Folder for results.json and the features. Default: RUN/evaluate-knn.")
    k: Sequence[int] = option(
        (10, 20, 100, 200),
        "Numbers of neighbours. Those above the number of training images are skipped.",
        COUNT,
    )
    temperature: float = option(0.07, "Temperature of the votes, weighted by exp(similarity / temperature).", RATE)
    image_size: int | None = option(
        None,
        "Side of the centre crop in pixels, after resizing the shorter side to 256/224 of it. Default: the run's.",
        Range(16, most=MOST_SIDE_PX),
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateLinearOptions(MachineOptions, MeasureOptions):
    """Options of `dovetail evaluate linear`."""

    data: str | Path = option(
        "",
        "Folder with train/CLASS/ and val/CLASS/ images as in ImageNet, or a saved Hugging Face dataset.",
    )
    out: str | Path = option("", "Folder for results.json and the features. Default: RUN/evaluate-linear.")
    lr: Sequence[float] = option(
        (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        "Learning rates to try. The best one on a held-out tenth of the training images is used and printed.",
        RATE,
    )
    epochs: int = option(100, "Passes over the features.", COUNT)
    batch_size: int = option(1024, "Features per step.", Range(1, most=1 << 20))
    weight_decay: float = option(0.0, "Weight decay of the classifier's weights.", NOT_NEGATIVE)
    blocks: int = option(4, "For a ViT: number of last blocks whose class tokens are concatenated.", COUNT)
    image_size: int | None = option(
        None,
        "Side of the centre crop in pixels, after resizing the shorter side to 256/224 of it. Default: the run's.",
        Range(16, most=MOST_SIDE_PX),
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateDenseOptions(MachineOptions, MeasureOptions):
    """Options of `dovetail evaluate dense`."""

    data: str | Path = option(
        "",
        "Images with masks, as for `finetune segment`, or folders of video frames as in DAVIS.",
    )
    out: str | Path = option("", "Folder for results.json. Default: RUN/evaluate-dense.")
    model: str | None = option(None, "Model by name, instead of a run.")
    init: str | None = option(
        None,
        'Weights of `model`: a .safetensors file, a run folder, or "imagenet" for ImageNet weights of the encoder '
        "under a random decoder. Default: random weights.",
    )
    at: Sequence[str] = option(
        ("auto",),
        "Maps to measure: encoder (the deepest), decoder (the finest), one by name such as c4 or p2, or several "
        'concatenated, such as c4+c5. "auto" measures the encoder, and the decoder if there is one.',
    )
    protocols: Sequence[str] = option(
        ("auto",),
        "Protocols: linear (a linear classifier on cells), retrieval (labels of the nearest labelled cells), clusters "
        '(k-means, matched to classes), propagation (labels carried from frame to frame). "auto" uses propagation for '
        "video frames and the others for images.",
    )
    labels: Sequence[float] = option(
        (1.0,),
        "Labelled training images: a share up to 1, a number above 1. Subsets are nested and class-balanced.",
        RATE,
    )
    seeds: int = option(1, "Number of repetitions, with other labelled images and initial centres.", COUNT)
    image_size: int | None = option(
        None,
        "Side in pixels that whole images are resized to. Default: the run's.",
        Range(16, most=MOST_SIDE_PX),
    )
    classes: int | None = option(
        None,
        "Number of classes, for folders of images and masks. Default: counted from the masks.",
        COUNT,
    )
    ignore_index: int = option(
        255,
        "Label of pixels to ignore, for folders of images and masks and for frames; -1 for none.",
        Range(-1, 65_535),
    )
    lr: Sequence[float] = option(
        (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        "For linear: learning rates to try. The best one on a held-out tenth of the labelled images is used.",
        RATE,
    )
    weight_decay: Sequence[float] = option(
        (0.0001, 0.01),
        "For linear: weight decays to try with each learning rate.",
        NOT_NEGATIVE,
    )
    steps: int = option(400, "For linear: optimiser steps.", COUNT)
    k: int = option(30, "For retrieval: number of nearest cells.", COUNT)
    temperature: float = option(0.02, "For retrieval: temperature of the softmax over their similarities.", RATE)
    memory: int = option(20000, "For retrieval: most labelled cells in the memory bank.", COUNT)
    clusters: Sequence[int] = option(
        (0, 500),
        "For clusters: numbers of clusters; 0 stands for the number of classes.",
        NOT_NEGATIVE,
    )
    radius: int = option(12, "For propagation: distance in cells, to each side, from which labels are taken.", COUNT)
