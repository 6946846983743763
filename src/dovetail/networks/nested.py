"""Maps in the outputs of modules: tensors in any nesting of sequences, dictionaries and dataclasses.

The channel dimension of a map is inferred from its shapes for two image sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

Shape = tuple[int, ...]

FIRST, LAST = 1, 3
"""Channel dimension in [B, C, H, W] and in [B, H, W, C]."""


def tensors_in(output: Any) -> list[Tensor]:
    """Return the tensors in a module's output, in order."""
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
    """Apply `change` to every tensor in a module's output, keeping the containers."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, Mapping):
        changed = {name: with_tensors(value, change) for name, value in output.items()}
        kind: Any = type(output)
        both = "__dataclass_fields__" in vars(kind)  # outputs of transformers are both dictionaries and dataclasses
        return kind(**changed) if both else kind(changed)
    if isinstance(output, tuple) and "_fields" in vars(type(output)):  # a NamedTuple
        return type(output)(*(with_tensors(value, change) for value in output))
    if isinstance(output, (list, tuple)):
        return type(output)(with_tensors(value, change) for value in output)
    fields = {name: with_tensors(getattr(output, name), change) for name in _fields(output)}
    return dataclasses.replace(output, **fields) if fields else output


def _fields(output: Any) -> list[str]:
    """Return the field names of a dataclass; none for other objects."""
    if not dataclasses.is_dataclass(output) or isinstance(output, type):
        return []
    return [field.name for field in dataclasses.fields(output) if field.init]


def channel_dimension(shape: Shape, other: Shape | None) -> int | None:
    """Return the channel dimension of a map, `FIRST` or `LAST`; None if it is ambiguous.

    Args:
        shape: Shape of the map of a square image.
        other: Shape of the map of a square image of another size; None if the model only supports one size.
    """
    if other is not None and len(other) == len(shape) and other != shape:
        changed = [axis for axis in (1, 2, 3) if shape[axis] != other[axis]]
        return FIRST if changed == [2, 3] else LAST if changed == [1, 2] else None
    height, middle, width = shape[1:]
    if middle == width and height != middle:
        return FIRST
    return LAST if height == middle and middle != width else None
