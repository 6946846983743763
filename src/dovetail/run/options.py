"""The options of `dovetail pretrain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dovetail.errors import OptionsError
from dovetail.options import MOST_SIDE_PX, NOT_NEGATIVE, Options, Range, option
from dovetail.train.options import EngineOptions


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """What is trained, how, and on which images."""

    data: Any = option(
        None,
        "Folder of images (searched recursively), .zip or uncompressed .tar of images, text file with one path a line, "
        'folder or pattern of WebDataset shards ("shards/photos-{000..147}.tar", URLs), Hugging Face dataset (a saved '
        'folder, or "hf:NAME#SPLIT"), or (in Python) a sequence of paths or a dataset of images.',
    )
    model: Any = option(
        None,
        "Name of a model (`dovetail models` lists them: timm/NAME, timm/NAME+fpn, timm/NAME+fcn, "
        "smp/ARCHITECTURE/ENCODER, torchvision/NAME), or a call with options, \"timm.create_model('NAME', "
        'patch_size=8)+fpn(channels=64)" or "smp.FPN(...)", or (in Python) a module.',
    )
    method: str = option("decon-sl", "Name of a method (`dovetail methods` lists them).")
    out: str | Path = option("", "Folder of the run; must be empty or new unless `overwrite` or `resume` is given.")
    preset: Literal["auto", "paper", "small", "short"] = option(
        "auto",
        'Sizes of heads and the like: "paper" as published, "small" for up to 20,000 images or no GPU, "auto" chooses '
        'between them; "short" has momenta and rates for some hundred steps too. Options of the recipe that are given '
        "count more.",
    )
    recipe: dict[str, Any] | None = option(None, "Options of the method's recipe (`dovetail show METHOD` prints it).")
    image_size: int | None = option(
        None, "Side of the global views in pixels; the recipe's unless given.", Range(8, most=MOST_SIDE_PX)
    )
    in_channels: int = option(3, "Channels of the images.", Range(1, most=4096))
    value_range: Sequence[float] = option(
        (),
        "Black and white of images with more than 8 bits a channel, such as 0 4095 for 12 bits; what lies beyond is "
        "clipped. Unless given, 0 and 65535, of floating point 0 and 1.",
    )
    init: str | None = option(
        None,
        'Weights to start from: a .safetensors file, a run\'s folder, or "imagenet" for supervised weights of the '
        "encoder. Those of EfficientNet-Lite0 come from an installed package, the others from the library's hub.",
    )
    mean: Sequence[float] = option(
        (),
        "Mean of each channel, for values in [0, 1], with which images are normalised. By default that of the weights "
        "to start from where it is known, and else ImageNet's.",
    )
    std: Sequence[float] = option((), "Standard deviation of each channel, likewise.")
    encoder: str | None = option(None, "Of a module of your own: name of the sub-module that is the encoder.")
    decoder: str | None = option(None, "Of a module of your own: name of the sub-module that is the decoder.")
    drop_path: float = option(
        0.0, "Of timm's ViTs, given by name: stochastic depth of its last block, in [0, 1); off in the teacher."
    )
    checkpoint_blocks: bool = option(
        False, "Of timm's ViTs, given by name: compute blocks again in the backward pass, to save memory."
    )


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(EngineOptions, ModelOptions):
    """Every option of `dovetail pretrain`."""

    report_every_minutes: float = option(
        5.0, "Minutes between two writings of the page report.html; 0 writes none.", NOT_NEGATIVE, movable=True
    )
    knn_data: str | Path | None = option(
        None,
        "Folder with train/CLASS/ and val/CLASS/ images, as of `dovetail evaluate knn`: the log says how many of the "
        "latter the encoder as it stands tells by their 20 nearest of the former. Training never sees them.",
        movable=True,
    )
    dense_data: str | Path | None = option(
        None,
        "Images with masks, as of `dovetail evaluate dense`: the log has the mIoU of the encoder's and the decoder's "
        "frozen maps, by a linear classifier and by retrieval. Training never sees them.",
        movable=True,
    )
    loggers: Sequence[str] = option(
        (),
        "Loggers beside TensorBoard: wandb, mlflow, or both; their packages must be installed.",
        movable=True,
    )
    compile: bool = option(
        False, "Let torch.compile run the networks; the first step waits for it, minutes. Not with fsdp."
    )
    profile: int = option(
        0,
        "Steps to profile, after the first three: a summary on the screen and a trace in OUT/profile.",
        NOT_NEGATIVE,
        movable=True,
    )
    overwrite: bool = option(False, "Empty a non-empty `out` first.")
    resume: bool = option(
        False,
        "Go on with the run in `out`, exactly where it stopped; on other devices with the same images in a step.",
    )

    def check_complete(self) -> None:
        """Raise `OptionsError` where something without a default is missing, and for statistics that do not fit."""
        if self.data is None:
            raise OptionsError("No data was named; give a folder of images with --data.")
        if self.model is None:
            raise OptionsError("No model was named; give one such as --model smp/unet/resnet50.")
        mean, std = self.mean, self.std
        if any(len(one) not in (0, self.in_channels) for one in (mean, std)) or len(mean) != len(std):
            raise OptionsError(
                f"mean is {list(mean)} and std is {list(std)}; give both, with one number for each of the "
                f"{self.in_channels} channels, or neither."
            )
        if any(value <= 0 for value in std):
            raise OptionsError(f"std is {list(std)}; each number must be above 0.")
