"""What numbers the options of all verbs but `pretrain` may have; one table for all of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovetail.errors import DovetailError


@dataclass(frozen=True)
class Range:
    """Numbers from `low` on, that included unless `above`, to `high`, included.

    `most` bounds what has no natural limit, so that no memory is taken for what nobody means.
    """

    low: float
    high: float = math.inf
    above: bool = False
    most: float = 2**63 - 1

    def holds(self, value: float) -> bool:
        """Whether a number is in the range; NaN and infinity are in none."""
        high = min(self.high, self.most)
        return math.isfinite(value) and self.low <= value <= high and not (self.above and value == self.low)

    def __str__(self) -> str:
        if self.above:
            return f"above {self.low:g}" + (f" and at most {self.high:g}" if self.high < math.inf else "")
        return f"at least {self.low:g}" if self.high == math.inf else f"from {self.low:g} to {self.high:g}"


MOST_SIDE_PX = 1 << 14
MOST_PICTURES = 200  # rows or columns of a sheet, whose pixels have a limit
COUNT, NOT_NEGATIVE, SHARE = Range(1, most=1 << 40), Range(0), Range(0, 1, above=True)
RANGES: Mapping[str, Range] = {
    "batch_size": Range(1, most=1 << 20),
    **dict.fromkeys(("blocks", "classes", "epochs", "k", "memory", "radius", "seeds", "steps"), COUNT),
    **dict.fromkeys(("images_per_shard", "lines", "proposals"), COUNT),
    **dict.fromkeys(("count", "most"), Range(1, most=MOST_PICTURES)),
    **dict.fromkeys(("auxiliary_weight", "cutmix", "encoder_lr_scale", "mixup"), NOT_NEGATIVE),
    **dict.fromkeys(("clusters", "seed", "warmup_steps", "weight_decay"), NOT_NEGATIVE),
    **dict.fromkeys(("labels", "lr", "temperature"), Range(0, above=True, most=1e6)),
    **dict.fromkeys(("fraction", "layer_decay"), SHARE),
    **dict.fromkeys(("min_score", "random_erasing"), Range(0, 1)),
    "crop_size": Range(32, most=MOST_SIDE_PX),
    "ignore_index": Range(-1, 65_535),
    "image_size": Range(16, most=MOST_SIDE_PX),
    "workers": Range(0, most=4096),
    "side_px": Range(8, most=MOST_SIDE_PX),
    "label_smoothing": Range(0, 0.999),
    "randaugment": Range(0, 10),
}


def check_ranges(asked: Mapping[str, Any], ranges: Mapping[str, Range] = RANGES) -> None:
    """Raise `DovetailError` for the first option whose number, or one of whose numbers, is out of range.

    Args:
        asked: Options by name; what is no number ("auto", None) and what the table does not name passes.
        ranges: The table.
    """
    for name, allowed in ranges.items():
        value = asked.get(name)
        several = value if isinstance(value, list | tuple) else [value]
        wrong = [one for one in several if isinstance(one, int | float) and not allowed.holds(one)]
        if wrong:
            must = f"at most {allowed.most:g}" if allowed.most < wrong[0] < math.inf else str(allowed)
            raise DovetailError(f"{name} is {wrong[0]:g}; it must be {must}.")


def check_share(name: str, value: float) -> None:
    """Raise `DovetailError` unless 0 < value <= 1."""
    if not SHARE.holds(value):
        raise DovetailError(f"{name} is {value:g}; it must be {SHARE}.")


def check_writable(folder: Path) -> None:
    """Raise `DovetailError` where a folder cannot be made or written to, before hours were spent on what goes there."""
    place = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    if not place.is_dir():
        raise DovetailError(f"{place} is a file; name a folder with --out.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise DovetailError(f"Cannot write to {place}; name another folder with --out.")
