"""Layer decay: smaller learning rates for layers closer to the input.

The learning rate of layer l of L is lr * decay^(L - l). Everything after the encoder uses lr (Clark et al., 2020,
https://arxiv.org/abs/2003.10555; BEiT, https://arxiv.org/abs/2106.08254). Layers are a ViT's blocks or a CNN's stages.
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
    """Return the layer of each parameter: 0 for the stem, then blocks or stages, later norms, and finally the rest.

    Unnumbered parameters of the encoder belong to the stem if they come before the first numbered one.

    Args:
        names: Parameter names in the order of the model.
        encoder: Prefixes of the encoder's parameter names.
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
    """Return the block or stage number of a parameter; None for the stem and for parameters after the blocks."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None
