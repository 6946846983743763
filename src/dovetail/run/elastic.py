"""Going on with more or fewer devices: the images of a step stay the same ones, the devices share them anew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dovetail.errors import OptionsError

SIZES = ("batch_size", "accumulate", "devices", "num_nodes")


def share_batch(global_batch: int, world_size: int, *, most: int) -> tuple[int, int]:
    """Return images per device and forward pass, and forward passes per step, whose product with the devices is the
    global batch: as many images in a pass as fit, and at most `most`.

    >>> share_batch(256, 4, most=32)
    (32, 2)

    Args:
        global_batch: Images in one step.
        world_size: Devices.
        most: Images that a device may take at once.

    Raises:
        OptionsError: When the batch does not divide over the devices.
    """
    if global_batch % world_size:
        fitting = [count for count in range(1, 2 * world_size + 1) if global_batch % count == 0]
        near = sorted(sorted(fitting, key=lambda count: abs(count - world_size))[:2])
        raise OptionsError(
            f"The {global_batch} images of a step do not divide over {world_size} devices; go on with "
            f"{' or '.join(map(str, near))}."
        )
    share = global_batch // world_size
    batch = next(size for size in range(min(max(most, 1), share), 0, -1) if share % size == 0)
    return batch, share // batch


def shared_anew(saved: Mapping[str, Any], asked: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, int]:
    """Return batch_size and accumulate of a resumed run: its global batch, on the devices that there are now.

    Args:
        saved: Options of the run as it was.
        asked: Those of its devices and sizes that are asked for now, by name.
        given: The resumed run's options; of them the devices count.
    """
    before, now = numbers(saved, SIZES), numbers(given, ("devices", "num_nodes"))
    wishes = numbers(asked, [name for name in ("batch_size", "accumulate") if name in asked])
    if before is None or now is None or wishes is None:
        return {}  # whoever reads the options next says what is wrong with them
    global_batch, world_size = math.prod(before), math.prod(now)
    most: int = asked.get("batch_size", before[0])
    if "batch_size" not in asked and "accumulate" in asked:
        most = global_batch // (world_size * asked["accumulate"])
    batch_size, accumulate = share_batch(global_batch, world_size, most=most)
    return {"batch_size": batch_size, "accumulate": accumulate}


def numbers(options: Mapping[str, Any], names: Sequence[str]) -> list[int] | None:
    """Return options that are whole numbers above zero; None if one of them is not."""
    values = [options.get(name) for name in names]
    whole = [value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0]
    return whole if len(whole) == len(values) else None
