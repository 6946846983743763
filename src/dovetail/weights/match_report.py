"""The state of a match between the tensors of a file and those of a model, and the report that it becomes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dovetail.weights.alignment import nearest
from dovetail.weights.checkpoint import COMPUTED
from dovetail.weights.exported import Exported, MatchReport, Mismatch, SelectedPart, some
from dovetail.weights.fitting import SQUARE, Grids

Shape = tuple[int, ...]
Key = tuple[str, str]  # part, and name within it in the common spelling
ALL = "all"  # the part of modules whose parts are unknown
# Tensors that an encoder may have but a file of the same encoder may lack. They keep their values, and are reported.
_OPTIONAL = re.compile(r"^(norm\d*|fc_norm|norm_pre|mask_token|dist_token|reg_token)(\.|$)")


@dataclass(frozen=True)
class Origin:
    """A tensor of a file, or one of the pieces of a fused tensor."""

    name: str
    value: Tensor


@dataclass(frozen=True)
class Filling:
    """The values for one tensor of the model: pieces that are concatenated along the rows."""

    pieces: tuple[Tensor, ...]
    finish: Callable[[Tensor], Tensor] | None = None

    def into(self, target: Tensor) -> None:
        """Write the values into `target`."""
        value = self.pieces[0] if len(self.pieces) == 1 else torch.cat([one.to(target.dtype) for one in self.pieces])
        target.copy_(value if self.finish is None else self.finish(value))


@dataclass(frozen=True)
class Asked:
    """The request: the weights, the part to load, whether to load task heads, and the grids of positions."""

    exported: Exported
    part: SelectedPart
    heads: bool
    grids: Grids = SQUARE


@dataclass
class Found:
    """The results of a match so far, by names in the model."""

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)
    channels: list[str] = field(default_factory=list)
    fillings: dict[str, Filling] = field(default_factory=dict)


def reported(
    found: Found,
    asked: Asked,
    source: Mapping[Key, Origin],
    keys: Mapping[str, tuple[Key, ...]],
    never: set[Key],
    *,
    foreign: bool,
) -> MatchReport:
    """Return the report. The remaining tensors of the file are unexpected or not needed."""
    taken = {key for each in keys.values() for key in each}
    exported, part, described = asked.exported, asked.part, bool(asked.exported.info)
    rest: dict[str, Key] = {}
    for key, origin in source.items():
        chosen = part == "all" or key[0] in (part, ALL)
        if key not in taken and key not in never and chosen and not (asked.heads and key[0] == "head"):
            rest.setdefault(origin.name, key)
    rest = {name: key for name, key in rest.items() if not COMPUTED.search(name)}
    kinds = {(key[0], _kind(key[1])) for key in taken if key[0] != "head"}
    unexpected = [name for name, key in rest.items() if described or _belongs(key, source[key].value, kinds)]
    used = {origin.name for key, origin in source.items() if key in taken and (asked.heads or key[0] != "head")}
    left = [name for name in rest if name not in unexpected]
    if not described:
        left += [name for name in exported.weights if name not in used and name not in rest]
    missing, fresh = _missing(found, keys, source, described=described, foreign=foreign)
    return MatchReport(
        matched=tuple(found.matched),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=tuple(found.mismatched),
        fresh=tuple(fresh),
        resampled=tuple(found.resampled),
        channels=tuple(found.channels),
        left_over=tuple(name for name in left if not COMPUTED.search(name)),
        precision=_precisions(source, found, keys),
    )


def _kind(name: str) -> str:
    """Return the first part of a name without its number, such as "layer" for "layer1.0.conv1.weight"."""
    return re.sub(r"\d+$", "", name.partition(".")[0])


def _belongs(key: Key, value: Tensor, kinds: set[tuple[str, str]]) -> bool:
    """Return whether a tensor without a match belongs to the network, such as blocks beyond the model's depth.

    Biases of zeros are ignored; DINOv3 has them where its code masks them. Norms of single stages belong to detectors.
    """
    kind = _kind(key[1])
    silent = key[1].endswith("bias") and not bool(value.any())
    return (key[0], kind) in kinds and kind not in ("norm", "") and not silent


def _missing(
    found: Found, keys: Mapping[str, tuple[Key, ...]], source: Mapping[Key, Origin], *, described: bool, foreign: bool
) -> tuple[list[str], list[str]]:
    """Return the missing tensors, and those that keep their values, such as a decoder that the file does not have."""
    missing, fresh = list(found.missing), list(found.fresh)
    has_decoder = any(key[0] == "decoder" for key in source) and (
        described or any(keys[name][0][0] == "decoder" for name in found.matched)
    )
    encoder = any(keys[name][0][0] == "encoder" for name in found.matched)
    free = [
        name
        for name in missing
        if (keys[name][0][0] == "decoder" and encoder and not has_decoder)
        or (foreign and _OPTIONAL.search(keys[name][0][1]))
    ]
    order = list(keys)
    return [name for name in missing if name not in free], sorted(fresh + free, key=order.index)


def _precisions(source: Mapping[Key, Origin], found: Found, keys: Mapping[str, tuple[Key, ...]]) -> str:
    """Return the dtypes of the loaded weights other than float32."""
    kinds = {
        str(source[key].value.dtype).removeprefix("torch.")
        for name in found.matched
        for key in keys[name]
        if source[key].value.is_floating_point()
    }
    return ", ".join(sorted(kinds - {"float32"}))


def nearest_in_words(source: Iterable[str], target: Iterable[str]) -> str:
    """Describe the most similar names."""
    pairs = nearest(source, target)
    if not pairs:
        return "one of them has no tensors"
    told = ", ".join(f"{theirs} in the file and {ours} in the model" for theirs, ours in pairs)
    return f"the most similar names are {told}"


def faults(report: MatchReport, *, shown: int = 4) -> str:
    """Describe the tensors that do not fit, with the names of the first of each kind."""
    shapes = [f"{one.name} (expected {list(one.wanted)}, got {list(one.found)})" for one in report.mismatched]
    every = (("missing", report.missing), ("unexpected", report.unexpected), ("with another shape", shapes))
    return "; ".join(f"{len(names)} {what}: {some(names, shown)}" for what, names in every if names)
