"""Maps in what modules answer with: tensors, sequences, dictionaries and dataclasses, nested as they like.

Which dimension of a map holds its channels is read off its shapes for two sizes of image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

Shape = tuple[int, ...]

FIRST, LAST = 1, 3
"""The dimension of channels in [B, C, H, W] and in [B, H, W, C]."""


def tensors_in(output: Any) -> list[Tensor]:
    """Return the tensors in a module's answer, in the order in which they stand there."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        inner: Iterable[Any] = output.values()
    elif isinstance(output, (list, tuple)):
        inner = output
    else:
        inner = [getattr(output, name) for name in _fields(output)]
    return [found for value in inner for found in tensors_in(value)]


def with_tensors(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a module's answer with `change` of every tensor in it, in containers of the same kinds."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, Mapping):
        changed = {name: with_tensors(value, change) for name, value in output.items()}
        kind: Any = type(output)
        both = "__dataclass_fields__" in vars(kind)  # transformers' answers are dictionaries and dataclasses
        return kind(**changed) if both else kind(changed)
    if isinstance(output, tuple) and "_fields" in vars(type(output)):  # a NamedTuple
        return type(output)(*(with_tensors(value, change) for value in output))
    if isinstance(output, (list, tuple)):
        return type(output)(with_tensors(value, change) for value in output)
    fields = {name: with_tensors(getattr(output, name), change) for name in _fields(output)}
    return dataclasses.replace(output, **fields) if fields else output


def _fields(output: Any) -> list[str]:
    """Return the names of a dataclass's fields; none for anything else."""
    if not dataclasses.is_dataclass(output) or isinstance(output, type):
        return []
    return [field.name for field in dataclasses.fields(output) if field.init]


def channel_dimension(shape: Shape, other: Shape | None) -> int | None:
    """Return which dimension of a map has the channels, `FIRST` or `LAST`; None where its shapes do not tell.

    Args:
        shape: Of the map of a square image.
        other: Of the map of a square image of another size; None where the model takes one size alone.
    """
    if other is not None and len(other) == len(shape) and other != shape:
        changed = [axis for axis in (1, 2, 3) if shape[axis] != other[axis]]
        return FIRST if changed == [2, 3] else LAST if changed == [1, 2] else None
    height, middle, width = shape[1:]
    if middle == width and height != middle:
        return FIRST
    return LAST if height == middle and middle != width else None
