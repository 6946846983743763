"""Layer decay: the nearer to the pixels, the smaller the learning rate.

The rate of layer l of L is lr * decay^(L - l), that of everything after the encoder being lr (Clark et al., 2020,
https://arxiv.org/abs/2003.10555; BEiT, https://arxiv.org/abs/2106.08254). Layers are a ViT's blocks, a CNN's stages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_LAYER = re.compile(r"(?:^|\.)(?:blocks?|layers?|stages|features)[._]?(\d+)(?:\.|_|$)")


def layer_scales(names: Sequence[str], *, encoder: tuple[str, ...], decay: float) -> dict[str, float]:
    """Return the factor on the learning rate of each named parameter; see `layer_depths`."""
    depths = layer_depths(names, encoder=encoder)
    top = max(depths.values(), default=0)
    return {name: decay ** (top - depth) for name, depth in depths.items()}


def layer_depths(names: Sequence[str], *, encoder: tuple[str, ...]) -> dict[str, int]:
    """Return the layer of each parameter: 0 for the stem, then blocks or stages, norms after them, last all the rest.

    Parameters of the encoder without a number belong to the stem where they come before the first that has one.

    Args:
        names: In the order of the model.
        encoder: How the names of the encoder's parameters begin.
    """
    inside = [name for name in names if name.startswith(encoder)]
    numbers = {name: layer_of(name) for name in inside}
    known = sorted({number for number in numbers.values() if number is not None})
    rank = {number: index + 1 for index, number in enumerate(known)}
    first = next((index for index, name in enumerate(inside) if numbers[name] is not None), len(inside))
    depths = dict.fromkeys(names, len(known) + 1)
    for index, name in enumerate(inside):
        number = numbers[name]
        depths[name] = rank[number] if number is not None else 0 if index < first else len(known)
    return depths


def layer_of(name: str) -> int | None:
    """Return the number of the block or stage that a parameter is in; None for the stem and for what comes after."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None
