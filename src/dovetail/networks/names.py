"""Names of ResNets, feature pyramids and FCN heads in detectron2 and in the mm libraries.

detectron2 puts the norm inside the convolution (`conv1.norm.weight`), and its ResNets must use `STRIDE_IN_1X1: False`
like torchvision's. mmsegmentation and mmdetection use torchvision's names of ResNets.
"""

from __future__ import annotations

import re

from dovetail.errors import ModelError

_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(.+)")
_PYRAMID = re.compile(r"(inner|layer)_blocks\.(\d)\.(\d)\.(.+)")


def is_resnet(encoder_names: list[str]) -> bool:
    """Whether the local names of an encoder are those of torchvision's ResNets."""
    return {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight"} <= set(encoder_names)


def detectron2_encoder(name: str) -> str:
    """Return detectron2's name, within its ResNet, of a ResNet's tensor."""
    block = _BLOCK.fullmatch(name)
    path, prefix = (block[3], f"res{int(block[1]) + 1}.{block[2]}") if block else (name, "stem")
    path = path.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    return f"{prefix}." + re.sub(r"bn(\d)", r"conv\1.norm", path)


def detectron2_decoder(name: str, *, finest_level: int) -> str:
    """Return detectron2's name, within its FPN, of a pyramid's tensor.

    Args:
        name: Local name such as "inner_blocks.0.0.weight" (convolution) or "inner_blocks.0.1.weight" (its norm).
        finest_level: Level of block 0: 2 for p2.
    """
    kind, level, layer, tensor = _pyramid(name, "detectron2")
    norm = "norm." if layer else ""
    return f"fpn_{'lateral' if kind == 'inner' else 'output'}{level + finest_level}.{norm}{tensor}"


def mm_decoder(name: str) -> str:
    """Return the mm libraries' full name of a decoder's tensor: a pyramid as `neck`, an FCN as `decode_head`."""
    if name.startswith("convs."):
        return f"decode_head.{name}"
    kind, level, layer, tensor = _pyramid(name, "mmsegmentation")
    return f"neck.{'lateral' if kind == 'inner' else 'fpn'}_convs.{level}.{'bn' if layer else 'conv'}.{tensor}"


def _pyramid(name: str, library: str) -> tuple[str, int, int, str]:
    """Return (kind, level, layer, tensor) of a pyramid's tensor."""
    found = _PYRAMID.fullmatch(name)
    if found is None:
        raise ModelError(f"{library} has no counterpart of this decoder ({name}); use the format 'encoder'.")
    return found[1], int(found[2]), int(found[3]), found[4]
