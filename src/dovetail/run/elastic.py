"""Resumes a run with another number of devices: the global batch of each step stays the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dovetail.errors import OptionsError

SIZES = ("batch_size", "accumulate", "devices", "num_nodes")


def share_batch(global_batch: int, world_size: int, *, most: int) -> tuple[int, int]:
    """Split the global batch: return images per device and forward pass, and forward passes per step.

    >>> share_batch(256, 4, most=32)
    (32, 2)

    Args:
        global_batch: Number of images in one step.
        world_size: Number of devices.
        most: Largest number of images per device and forward pass.

    Raises:
        OptionsError: The batch is not divisible by the number of devices.
    """
    if global_batch % world_size:
        fitting = [count for count in range(1, 2 * world_size + 1) if global_batch % count == 0]
        near = sorted(sorted(fitting, key=lambda count: abs(count - world_size))[:2])
        raise OptionsError(
            f"The global batch size of {global_batch} is not divisible by {world_size} devices; resume with "
            f"--devices {' or '.join(map(str, near))}."
        )
    share = global_batch // world_size
    batch = next(size for size in range(min(max(most, 1), share), 0, -1) if share % size == 0)
    return batch, share // batch


def shared_anew(saved: Mapping[str, Any], asked: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, int]:
    """Return batch_size and accumulate of a resumed run, for its global batch on the current devices.

    Args:
        saved: Saved options of the run.
        asked: Options for devices and batch sizes that are specified now, by name.
        given: Options of the resumed run, which determine the devices.
    """
    before, now = numbers(saved, SIZES), numbers(given, ("devices", "num_nodes"))
    wishes = numbers(asked, [name for name in ("batch_size", "accumulate") if name in asked])
    if before is None or now is None or wishes is None:
        return {}  # the validation of the options reports the error
    global_batch, world_size = math.prod(before), math.prod(now)
    most: int = asked.get("batch_size", before[0])
    if "batch_size" not in asked and "accumulate" in asked:
        most = global_batch // (world_size * asked["accumulate"])
    batch_size, accumulate = share_batch(global_batch, world_size, most=most)
    return {"batch_size": batch_size, "accumulate": accumulate}


def numbers(options: Mapping[str, Any], names: Sequence[str]) -> list[int] | None:
    """Return the options if all of them are positive integers, else None."""
    values = [options.get(name) for name in names]
    whole = [value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0]
    return whole if len(whole) == len(values) else None
