"""iBOT's masks on the patches of a global view (https://arxiv.org/abs/2111.07832, section 3.1 and its official code).

Shapes: h x w patches. `True` masks a patch for the student.
"""

from __future__ import annotations

import math

import numpy as np

from dovetail.views.plan import MaskSpec

_TRIES = 10
_ASPECT = (0.3, 1 / 0.3)  # height divided by width of a block


def draw_mask(rng: np.random.Generator, spec: MaskSpec, *, height: int, width: int) -> np.ndarray:
    """Return [height, width] bool: no mask with probability 1 - p, otherwise a fraction drawn uniformly."""
    if rng.random() >= spec.p:
        return np.zeros((height, width), dtype=bool)
    count = int(rng.uniform(*spec.share) * height * width)
    make = block_mask if spec.shape == "block" else random_mask
    return make(rng, height=height, width=width, count=count)


def random_mask(rng: np.random.Generator, *, height: int, width: int, count: int) -> np.ndarray:
    """Return [height, width] bool with exactly `count` masked patches, drawn uniformly."""
    mask = np.zeros(height * width, dtype=bool)
    mask[rng.permutation(height * width)[:count]] = True
    return mask.reshape(height, width)


def block_mask(rng: np.random.Generator, *, height: int, width: int, count: int) -> np.ndarray:
    """Return [height, width] bool with at most `count` patches masked, in blocks that may touch and overlap.

    The area of a block is uniform between a ninth of the shorter side squared (16 for 14 x 14) and the number of
    patches left to mask. Blocks are added until `count` is reached or ten tries in a row find no suitable block.
    """
    mask = np.zeros((height, width), dtype=bool)
    smallest = (min(height, width) // 3) ** 2
    remaining = count
    while remaining > 0:
        added = _add_block(rng, mask, smallest, remaining)
        if added == 0:
            break
        remaining -= added
    return mask


def _add_block(rng: np.random.Generator, mask: np.ndarray, smallest: int, remaining: int) -> int:
    """Mask one block with 1 to `remaining` new patches in place; return their number, 0 if no block fits."""
    height, width = mask.shape
    for _ in range(_TRIES):
        # Towards the end `remaining` is below `smallest`: the area then lies between the two, as in the original.
        area = smallest + (remaining - smallest) * rng.random()
        aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        block_height, block_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (block_height < height and block_width < width):
            continue
        top, left = rng.integers(height - block_height + 1), rng.integers(width - block_width + 1)
        block = mask[top : top + block_height, left : left + block_width]
        hidden = block.size - int(block.sum())
        if 0 < hidden <= remaining:
            block[:] = True
            return hidden
    return 0
