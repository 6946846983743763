"""The options of `dovetail pretrain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dovetail.durations import seconds_in
from dovetail.errors import OptionsError
from dovetail.options import MOST_SIDE_PX, NOT_NEGATIVE, Options, Range, option
from dovetail.train.options import EngineOptions


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """What is trained, how, and on which images."""

    data: Any = option(
        None,
        "Unlabelled images: a folder (searched recursively), a .zip or uncompressed .tar, a text file with one path "
        'per line, a folder or pattern of WebDataset shards ("shards/photos-{000..147}.tar", URLs), a Hugging Face '
        'dataset (a saved folder, or "hf:NAME#SPLIT"), or in Python a sequence of paths or a dataset.',
    )
    model: Any = option(
        None,
        "Model by name: timm/NAME, timm/NAME+fpn, timm/NAME+fcn, smp/ARCHITECTURE/ENCODER or torchvision/NAME "
        "(`dovetail models` lists them). Or a call with options, such as \"timm.create_model('NAME', "
        'patch_size=8)+fpn(channels=64)" or "smp.FPN(...)", or package.module:Class for your own, or in Python a '
        "module.",
    )
    method: Any = option(
        "auto",
        "Name of a method (`dovetail methods` lists them), auto to choose by the model and the weights to start from, "
        "package.module:function for one of your own, or (in Python) "
        "a function (taps, **options) -> Recipe or a Recipe.",
    )
    out: str | Path = option("", "Run folder. It must be new or empty unless `overwrite` or `resume` is given.")
    preset: Literal["auto", "paper", "small", "short", "continue"] = option(
        "auto",
        'Sizes of heads, queues and similar: "paper" as published, "small" for up to 20,000 images or without a GPU. '
        '"short" also has momenta and rates for a few hundred steps; "continue" has these for an encoder with trained '
        "weights, which it freezes for half of the run and then trains at a tenth of the rate. "
        '"auto" takes "short" for a run without a GPU whose length is not given, and else "small" or "paper". '
        "Options in `recipe` override the preset.",
    )
    recipe: dict[str, Any] | None = option(None, "Options of the method's recipe (`dovetail show METHOD` prints them).")
    image_size: int | None = option(
        None, "Side of the global views in pixels. Default: the recipe's.", Range(8, most=MOST_SIDE_PX)
    )
    in_channels: int = option(3, "Channels of the images.", Range(1, most=4096))
    value_range: Sequence[float] = option(
        (),
        "Values of black and white in images with more than 8 bits per channel, such as 0 4095 for 12 bits. Values "
        "outside are clipped. Default: 0 65535 for integers, 0 1 for floating point.",
    )
    init: str | None = option(
        None,
        "Weights to start from: a run folder, a weights file, also of another program (.safetensors, .pth, .pt, .ckpt, "
        '.bin, .pth.tar), or "imagenet" for ImageNet weights of the encoder. A decoder that the file does not have '
        "starts at random. ImageNet weights of EfficientNet-Lite0 come from an installed package, the others from the "
        "model library's hub.",
    )
    mean: Sequence[float] = option(
        (),
        "Mean of each channel for normalisation, for values in [0, 1]. Default: the one that the weights in `init` "
        "were trained with if it is known, otherwise ImageNet's.",
    )
    std: Sequence[float] = option((), "Standard deviation of each channel for normalisation; default as for `mean`.")
    encoder: str | None = option(
        None, "For your own module: path of the submodule that is the encoder, or several paths with commas in between."
    )
    decoder: str | None = option(
        None, "For your own module: path of the submodule that is the decoder, or several paths with commas in between."
    )
    taps: dict[str, str] | None = option(
        None,
        "For your own module: path of the submodule that returns each tap's map, such as --taps.c5 backbone.layer4. "
        "Default: all maps of encoder and decoder.",
    )
    drop_path: float = option(
        0.0, "For timm ViTs given by name: stochastic depth rate of the last block, in [0, 1). The teacher has none."
    )
    checkpoint_blocks: bool = option(
        False, "For timm ViTs given by name: recompute blocks in the backward pass to save memory."
    )


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(EngineOptions, ModelOptions):
    """Every option of `dovetail pretrain`."""

    report_every_minutes: float = option(
        5.0, "Minutes between two updates of the page report.html; 0 writes no page.", NOT_NEGATIVE, movable=True
    )
    knn_data: str | Path | None = option(
        None,
        "Folder with train/CLASS/ and val/CLASS/ images, as for `dovetail evaluate knn`. The log then has the kNN "
        "accuracy (k = 20) of the current encoder. These images are never trained on.",
        movable=True,
    )
    dense_data: str | Path | None = option(
        None,
        "Images with masks, as for `dovetail evaluate dense`. The log then has the mIoU of the frozen encoder and "
        "decoder maps, by a linear classifier and by retrieval. These images are never trained on.",
        movable=True,
    )
    loggers: Sequence[Any] = option(
        (),
        "Loggers beside TensorBoard: wandb, mlflow, or both (their packages must be installed), or (in Python) "
        "Lightning loggers.",
        movable=True,
    )
    callbacks: Sequence[Any] = option((), "Lightning callbacks, called after the run's own.", movable=True, python=True)
    trainer_args: dict[str, Any] | None = option(
        None,
        "Further arguments of Lightning's Trainer, such as profiler or detect_anomaly; those that an option of this "
        "function stands for are refused.",
        movable=True,
        python=True,
    )
    optimiser: Any = option(
        None,
        "Function from torch's parameter groups to a torch optimiser, such as torch.optim.NAdam or a functools.partial "
        "of it, in place of the recipe's. Its lr and weight_decay count unless lr is given; the built-in optimisers "
        "are chosen with the recipe's option optimiser.",
        movable=True,
        python=True,
    )
    schedule: Any = option(
        None,
        "Function from a dovetail.schedules.Moment to the learning rate as a share of its peak, such as "
        "WarmupCosine(0.0, 1.0, 0.0, warmup_epochs=10), in place of the recipe's.",
        movable=True,
        python=True,
    )
    compile: bool = option(
        False, "Compile the networks with torch.compile. The first step then takes minutes. Not with fsdp."
    )
    profile: int = option(
        0,
        "Number of steps to profile, after the first three. Prints a summary and writes a trace to OUT/profile.",
        NOT_NEGATIVE,
        movable=True,
    )
    budget: str | None = option(
        None,
        'Wall time for the run, such as "30min", "2h" or "90s". Sets the number of steps, and smaller views where few '
        "steps fit, from a few steps that are timed first. For runs of one process.",
    )
    overwrite: bool = option(False, "Delete what is in `out` first.")
    resume: bool = option(
        False,
        "Resume the run in `out` exactly where it stopped. Other devices may be used with the same global batch size. "
        "A finished run is lengthened with a larger `epochs` or `max_steps`.",
    )

    def check_complete(self) -> None:
        """Raise `OptionsError` where something without a default is missing, and for statistics that do not fit."""
        if self.data is None:
            raise OptionsError("No data was named; give a folder of images with --data.")
        if self.model is None:
            raise OptionsError("No model was named; give one such as --model smp/unet/resnet50.")
        self.check_budget()
        mean, std = self.mean, self.std
        if any(len(one) not in (0, self.in_channels) for one in (mean, std)) or len(mean) != len(std):
            raise OptionsError(
                f"mean is {list(mean)} and std is {list(std)}; give both, with one number for each of the "
                f"{self.in_channels} channels, or neither."
            )
        if any(value <= 0 for value in std):
            raise OptionsError(f"std is {list(std)}; each number must be above 0.")

    def check_budget(self) -> None:
        """Raise `OptionsError` for a budget that is no duration, or beside what it would plan."""
        if self.budget is None:
            return
        seconds_in(self.budget)
        if self.resume:
            raise OptionsError("budget plans a new run, and a run that goes on has its length; leave --budget out.")
        for name in ("epochs", "max_steps"):
            if name in self.named and getattr(self, name) != self.default_of(name):
                raise OptionsError(f"budget and {name} both set the length of the run; give one of them.")
