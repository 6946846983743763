"""Where one set of tensor names lies in another: found by the names that both have in common, and their shapes.

A file's names have prefixes of wrappers and of dictionaries ("state_dict.module.encoder_q."), and a model has its
encoder below one of its own ("backbone.body."). All pairs of prefixes that make two names equal are counted.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]

# Of several copies of one network in a file, the one that its method's published code evaluates.
_FIRST = re.compile(r"(^|[._])(teacher|ema|model_ema|state_dict_ema|averaged_model)([._]|$)")
_LAST = re.compile(r"(^|[._])(momentum|encoder_k|target|key)([._]|$)|_momentum\b|momentum_")
_SLOTCON = re.compile(r"\bgrouping_[qk]\.")


@dataclass(frozen=True)
class Alignment:
    """A prefix of the file's names and one of the model's, after which both go on alike.

    Attributes:
        source: The file's prefix; "" for none.
        target: The model's.
        shapes: Tensors of one name and shape.
        names: Tensors of one name.
    """

    source: str
    target: str
    shapes: int
    names: int


def best_alignment(source: Mapping[str, Shape], target: Mapping[str, Shape]) -> Alignment | None:
    """Return the pair of prefixes under which most tensors have one name and shape; None without a common name.

    Args:
        source: Shapes by the file's names, in the common spelling.
        target: Shapes by the model's names, likewise.
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
    """Return how much one copy of a network counts before another, by its prefix.

    Args:
        prefix: Of the file's names.
        slotcon: Whether the file is SlotCon's, whose code hands on the encoder of the keys.
    """
    if slotcon:
        return 1 if "encoder_k" in prefix else 0
    return 1 if _FIRST.search(prefix) else -1 if _LAST.search(prefix) else 0


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Yield a name cut in two before each of its parts but the last, the whole name first."""
    place = -1
    while True:
        prefix, suffix = name[: place + 1], name[place + 1 :]
        if place >= 0 and "." not in suffix and "_" not in suffix:  # "weight" alone tells nothing
            return
        yield prefix, suffix
        place = name.find(".", place + 1)
        if place < 0:
            return


def _alike(one: Shape, other: Shape) -> bool:
    return one == other or [side for side in one if side != 1] == [side for side in other if side != 1]


def nearest(source: Iterable[str], target: Iterable[str], *, count: int = 3, most: int = 200) -> list[tuple[str, str]]:
    """Return the names of a file that are nearest to names of a model, each with that name; numbers in them count once.

    Args:
        source: The file's names.
        target: The model's.
        count: How many pairs.
        most: How many different names of each side are looked at.
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
