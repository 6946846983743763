"""The options of `dovetail try`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dovetail.durations import seconds_in
from dovetail.errors import OptionsError
from dovetail.options import COUNT, MOST_SIDE_PX, NOT_NEGATIVE, Options, Range, option


@dataclass(frozen=True, kw_only=True)
class TryOptions(Options):
    """Options of `dovetail try`."""

    data: str | Path = option("", "Unlabelled images, as of `dovetail pretrain`.")
    labels: str | Path = option("", "Labelled images for segmentation, as of `dovetail finetune segment`.")
    budget: str = option("2h", 'Wall time for all of it, such as "30min" or "2h".')
    out: str | Path = option("", "Folder for the runs, results.json and the page; the same command goes on in it.")
    model: str = option(
        "auto",
        'Name of the model, as of `dovetail pretrain`; "auto" is an FPN, on EfficientNet-Lite0 where its package is '
        "installed (no download), else on a ResNet-18, on a GPU a ResNet-50.",
    )
    init: str = option(
        "auto",
        'Weights to start from: "imagenet", "random", or a .safetensors file; "auto" is imagenet where the weights '
        "need no download, else random.",
    )
    image_size: int | None = option(
        None, "Side of the views in pixels; chosen by the budget unless given.", Range(8, most=MOST_SIDE_PX)
    )
    classes: int | None = option(None, "Number of classes of images beside masks; counted unless given.", COUNT)
    label_map: Sequence[str] = option(
        (), "What the labels or colours of images beside masks mean, as of `dovetail finetune segment`."
    )
    seeds: int = option(5, "Seeds of fine-tuning at most; as many are run as the budget allows.", COUNT)
    seed: int = option(0, "Seed of everything that is drawn.", NOT_NEGATIVE)

    def check_complete(self) -> None:
        """Raise `OptionsError` where something without a default is missing, or the budget is no duration."""
        for name, what in {"data": "a folder of images", "labels": "a labelled set", "out": "a folder"}.items():
            if not str(getattr(self, name)):
                raise OptionsError(f"{name} is missing; give {what} with --{name}.")
        seconds_in(self.budget)
