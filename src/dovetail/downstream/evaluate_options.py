"""Options of `dovetail evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovetail.downstream.options import LABEL_MAP, RATE, MachineOptions, MeasureOptions
from dovetail.options import COUNT, MOST_SIDE_PX, NOT_NEGATIVE, Range, option
from dovetail.sizes import Size, as_size


@dataclass(frozen=True, kw_only=True)
class EvaluateKnnOptions(MachineOptions, MeasureOptions):
    """Options of `dovetail evaluate knn`."""

    data: str | Path = option(
        "",
        "Folder with train/CLASS/ and val/CLASS/ images as in ImageNet, or a saved Hugging Face dataset.",
        existing=True,
    )
    out: str | Path = option("", "Folder for results.json and the features. Default: RUN/evaluate-knn.")
    k: Sequence[int] = option(
        (10, 20, 100, 200),
        "Numbers of neighbours. Those above the number of training images are skipped. If no default is left, 1 is "
        "used.",
        COUNT,
    )
    temperature: float = option(0.07, "Temperature of the votes, weighted by exp(similarity / temperature).", RATE)
    image_size: Size | None = option(
        None,
        "Side length of the centre crop in pixels, or height x width, such as 64x128, after resizing the image to "
        "cover 256/224 of it. Default: the run's.",
        Range(16, most=MOST_SIDE_PX),
        reads=as_size,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateLinearOptions(MachineOptions, MeasureOptions):
    """Options of `dovetail evaluate linear`."""

    data: str | Path = option(
        "",
        "Folder with train/CLASS/ and val/CLASS/ images as in ImageNet, or a saved Hugging Face dataset.",
        existing=True,
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
    image_size: Size | None = option(
        None,
        "Side length of the centre crop in pixels, or height x width, such as 64x128, after resizing the image to "
        "cover 256/224 of it. Default: the run's.",
        Range(16, most=MOST_SIDE_PX),
        reads=as_size,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateDenseOptions(MachineOptions, MeasureOptions):
    """Options of `dovetail evaluate dense`."""

    data: str | Path = option(
        "", "Images with masks, as for `finetune segment`, or folders of video frames as in DAVIS.", existing=True
    )
    out: str | Path = option("", "Folder for results.json. Default: RUN/evaluate-dense.")
    model: Any = option(
        None,
        "Model by name, instead of a run; or, for a run of your own module, package.module:Class or (in Python) the "
        "module.",
    )
    init: str | None = option(
        None,
        'Weights of `model`: a .safetensors file, a run folder, or "imagenet" for ImageNet weights of the encoder '
        "with a random decoder. Default: random weights.",
        existing=True,
        words=("imagenet",),
    )
    at: Sequence[str] = option(
        ("auto",),
        "Feature maps to evaluate: encoder (its deepest map), decoder (its finest map), a map such as c4 or p2, or "
        'several concatenated maps such as c4+c5. "auto" evaluates the encoder, and the decoder if there is one.',
    )
    protocols: Sequence[str] = option(
        ("auto",),
        "Protocols: linear (a linear classifier on cells), retrieval (labels of the nearest labelled cells), clusters "
        '(k-means, matched to classes), propagation (labels carried from frame to frame). "auto" uses propagation for '
        "video frames and the others for images.",
    )
    labels: Sequence[float] = option(
        (1.0,),
        "Labelled training images: a fraction up to 1, or a number above 1. Subsets are nested and class-balanced.",
        RATE,
    )
    seeds: int = option(1, "Number of repetitions, with other labelled images and initial centres.", COUNT)
    image_size: Size | None = option(
        None,
        "Side length in pixels that whole images are resized to, or height x width, such as 64x128. Default: the "
        "run's.",
        Range(16, most=MOST_SIDE_PX),
        reads=as_size,
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
    label_map: Sequence[str] = option((), LABEL_MAP)
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
    memory: int = option(20000, "For retrieval: largest number of labelled cells in the memory bank.", COUNT)
    clusters: Sequence[int] = option(
        (0, 500),
        "For clusters: numbers of clusters. 0 is the number of classes.",
        NOT_NEGATIVE,
    )
    radius: int = option(12, "For propagation: radius in cells within which labels are propagated.", COUNT)
