"""The options of `dovetail try`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dovetail.durations import seconds_in
from dovetail.errors import OptionsError
from dovetail.options import COUNT, MOST_SIDE_PX, NOT_NEGATIVE, Options, Range, option
from dovetail.sizes import Size, as_size


@dataclass(frozen=True, kw_only=True)
class TryOptions(Options):
    """Options of `dovetail try`."""

    data: str | Path = option("", "Unlabelled images, as for `dovetail pretrain`.", existing=True)
    labels: str | Path = option(
        "", "Labelled images for segmentation, as for `dovetail finetune segment`.", existing=True
    )
    budget: str = option("2h", 'Wall time for everything, such as "30min" or "2h".')
    out: str | Path = option("", "Folder for the runs, results.json and the page. The same command resumes in it.")
    model: str = option(
        "auto",
        'Name of the model, as for `dovetail pretrain`. "auto" is an FPN with EfficientNet-Lite0 if its package is '
        "installed (no download), otherwise with a ResNet-18, or a ResNet-50 on a GPU.",
    )
    init: str = option(
        "auto",
        'Weights to start from: "imagenet", "random", or a .safetensors file. "auto" is imagenet if the weights need '
        "no download, otherwise random.",
        existing=True,
        words=("auto", "imagenet", "random"),
    )
    image_size: Size | None = option(
        None,
        "Side length of the views in pixels, or height x width, such as 64x128. Default: chosen to fit the budget.",
        Range(8, most=MOST_SIDE_PX),
        reads=as_size,
    )
    classes: int | None = option(
        None, "Number of classes, for folders of images and masks. Default: counted in the masks.", COUNT
    )
    label_map: Sequence[str] = option(
        (), "Labels or colours of the classes, for folders of images and masks, as for `dovetail finetune segment`."
    )
    seeds: int = option(5, "Largest number of fine-tuning seeds. Fewer are used if the budget is short.", COUNT)
    seed: int = option(0, "Random seed.", NOT_NEGATIVE)

    def check_complete(self) -> None:
        """Raise `OptionsError` if a required option is missing, or the budget is not a duration."""
        for name, what in {"data": "a folder of images", "labels": "a labelled dataset", "out": "a folder"}.items():
            if not str(getattr(self, name)):
                raise OptionsError(f"{name} is missing; specify {what} with --{name}.")
            if not isinstance(getattr(self, name), str | Path):  # an interrupted command is resumed by its paths
                kind = type(getattr(self, name)).__name__
                raise OptionsError(
                    f"{name} is a {kind}, but a path is needed; write its images to files, such as shards with "
                    "dovetail.prepare."
                )
        seconds_in(self.budget)
