"""Aligns the tensor names of a file with those of a model, by common names and shapes.

Names in a file have prefixes of wrappers and dictionaries ("state_dict.module.encoder_q."), and the encoder of a model
has a prefix, too ("backbone.body."). All pairs of prefixes that make two names equal are counted.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]

# If a file has several copies of a network, prefer the one that the method's published code evaluates.
_FIRST = re.compile(r"(^|[._])(teacher|ema|model_ema|state_dict_ema|averaged_model)([._]|$)")
_LAST = re.compile(r"(^|[._])(momentum|encoder_k|target|key)([._]|$)|_momentum\b|momentum_")
_SLOTCON = re.compile(r"\bgrouping_[qk]\.")


@dataclass(frozen=True)
class Alignment:
    """A prefix in the file and a prefix in the model after which the names agree.

    Attributes:
        source: Prefix in the file, "" for none.
        target: Prefix in the model, "" for none.
        shapes: Number of tensors whose name and shape agree.
        names: Number of tensors whose name agrees.
    """

    source: str
    target: str
    shapes: int
    names: int


def best_alignment(source: Mapping[str, Shape], target: Mapping[str, Shape]) -> Alignment | None:
    """Return the pair of prefixes under which most names and shapes agree, or None if no names agree.

    Args:
        source: Shapes by name in the file, in the common spelling.
        target: Shapes by name in the model, in the common spelling.
    """
    by_suffix: dict[str, list[tuple[str, Shape]]] = defaultdict(list)
    for name, shape in target.items():
        for prefix, suffix in _cuts(name):
            by_suffix[suffix].append((prefix, shape))
    names: Counter[tuple[str, str]] = Counter()
    shapes: Counter[tuple[str, str]] = Counter()
    for name, shape in source.items():
        for prefix, suffix in _cuts(name):
            for other, wanted in by_suffix.get(suffix, ()):
                names[prefix, other] += 1
                shapes[prefix, other] += _alike(shape, wanted)
    slotcon = any(_SLOTCON.search(name) for name in source)

    def rank(pair: tuple[str, str]) -> tuple[int, int, int, int, str]:
        return shapes[pair], names[pair], preference(pair[0], slotcon=slotcon), -len(pair[0] + pair[1]), pair[0]

    if not names:
        return None
    best = max(names, key=rank)
    return Alignment(*best, shapes=shapes[best], names=names[best])


def preference(prefix: str, *, slotcon: bool = False) -> int:
    """Return the priority of a copy of the network by its prefix (higher is better).

    Args:
        prefix: Prefix of names in the file.
        slotcon: Whether the file was written by SlotCon's code, which exports the key encoder.
    """
    if slotcon:
        return 1 if "encoder_k" in prefix else 0
    return 1 if _FIRST.search(prefix) else -1 if _LAST.search(prefix) else 0


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Yield all splits of a name into prefix and suffix at dots, starting with an empty prefix."""
    place = -1
    while True:
        prefix, suffix = name[: place + 1], name[place + 1 :]
        if place >= 0 and "." not in suffix and "_" not in suffix:  # "weight" alone is ambiguous
            return
        yield prefix, suffix
        place = name.find(".", place + 1)
        if place < 0:
            return


def _alike(one: Shape, other: Shape) -> bool:
    return one == other or [side for side in one if side != 1] == [side for side in other if side != 1]


def nearest(source: Iterable[str], target: Iterable[str], *, count: int = 3, most: int = 200) -> list[tuple[str, str]]:
    """Return the most similar pairs of names, file first. Names that differ only in numbers count once.

    Args:
        source: Names in the file.
        target: Names in the model.
        count: Number of pairs to return.
        most: Largest number of different names of each side to compare.
    """
    ours = {re.sub(r"\d+", "0", name): name for name in reversed(list(target))}
    theirs = {re.sub(r"\d+", "0", name): name for name in reversed(list(source))}
    found = []
    for pattern in list(theirs)[-most:]:
        close = difflib.get_close_matches(pattern, list(ours)[-most:], n=1, cutoff=0.0)
        if close:
            ratio = difflib.SequenceMatcher(None, pattern, close[0]).ratio()
            found.append((-ratio, theirs[pattern], ours[close[0]]))
    return [(name, other) for _, name, other in sorted(found)[:count]]
