"""Matches the tensors of a file with those of a model, by library-specific names, prefixes, parts and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dovetail.errors import DovetailError, OptionsError, WeightsError
from dovetail.networks.decoders import EncoderFCN, EncoderFPN, beyond_maps
from dovetail.networks.parts import Parts, locate_parts
from dovetail.weights.alignment import Alignment, best_alignment
from dovetail.weights.checkpoint import COMPUTED
from dovetail.weights.exported import Exported, MatchReport, Mismatch, SelectedPart, read_exported
from dovetail.weights.fitting import POSITIONS, Grids, fitted, grids_of, moved_class_position
from dovetail.weights.match_report import (
    ALL,
    Asked,
    Filling,
    Found,
    Key,
    Origin,
    Shape,
    faults,
    nearest_in_words,
    reported,
)
from dovetail.weights.spellings import PLAIN, Spelling, plain_merging, spellings_of


def load_into(
    model: nn.Module,
    source: str | Path | Exported,
    *,
    part: SelectedPart = "all",
    prefix: str | None = None,
    parts: Parts | None = None,
    heads: bool = False,
    strict: bool = True,
) -> MatchReport:
    """Load weights into `model` in place and report which tensors were loaded.

    Names are matched within the encoder and within the decoder. So the model may come from another library than the
    file, as long as the parts have the same architecture. Task heads keep their values.

    Args:
        model: Module to load the weights into.
        source: Run folder, exported folder or weight file, or an `Exported` object.
        part: Load everything, or only one part.
        prefix: Prefix of the part's names in the model (of the encoder for "all"), such as "model.backbone.". By
            default, it is found automatically.
        parts: Prefixes of all parts of the model, if known.
        heads: Load task heads, too, if the file has them with the same shapes. Heads of fine-tuned runs are always
            loaded.
        strict: Raise an error if a tensor is missing, unexpected or has another shape. The model is not changed then.

    Returns:
        Report of the tensors that were loaded and those that were not.

    Raises:
        WeightsError: No tensor fits, or `strict` is set and some tensors do not fit.
    """
    exported = source if isinstance(source, Exported) else read_exported(source)
    report, fillings = match(model, exported, part=part, prefix=prefix, parts=parts, heads=heads)
    if not report.matched:
        why = faults(report) if report.mismatched else nearest_in_words(exported.weights, model.state_dict())
        raise WeightsError(
            f"No tensor in {exported.path} fits {type(model).__name__} ({why}); use the model that was pre-trained."
        )
    if strict and not fits(report):
        alone = ", load the encoder alone with part='encoder'" * (part == "all" and fits_alone(model, exported, prefix))
        raise WeightsError(
            f"{exported.path} does not fit {type(model).__name__} ({faults(report)}); use the model that was "
            f"pre-trained{alone}, or load with strict=False."
        )
    state = model.state_dict()
    with torch.no_grad():
        for name, filling in fillings.items():
            filling.into(state[name])
    return report


def fits(report: MatchReport) -> bool:
    """Return whether every tensor fits."""
    return bool(report.matched) and not (report.missing or report.unexpected or report.mismatched)


def fits_alone(model: nn.Module, exported: Exported, prefix: str | None) -> bool:
    """Return whether the encoder of a file fits a model, such as a bare encoder of timm."""
    try:
        return fits(match(model, exported, part="encoder", prefix=prefix)[0])
    except DovetailError:
        return False


def match(
    model: nn.Module,
    exported: Exported,
    *,
    part: SelectedPart,
    prefix: str | None = None,
    parts: Parts | None = None,
    heads: bool = False,
) -> tuple[MatchReport, dict[str, Filling]]:
    """Return the report and the values for each tensor of the model, which is not changed. See `load_into`."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    located = _given_parts(prefix, part) or parts or locate_parts(model)
    asked = Asked(exported, part, heads or "task" in exported.info, grids_of(model, exported.image_size))
    if exported.info:
        report, fillings = _described(asked, shapes, located)
        return _without_unused(report, model), fillings
    if part != "all" and located is None:
        raise OptionsError(
            f"The {part} of {type(model).__name__} was not found; load part='all', specify its prefix, or load into "
            "that submodule."
        )
    report, fillings = _bare(asked, shapes, located)
    return _without_unused(report, model), fillings


def _without_unused(report: MatchReport, model: nn.Module) -> MatchReport:
    """Return the report without missing tensors that the model never runs; they keep their values.

    smp builds timm encoders without the layers after the last feature map, and Dovetail's decoders build them whole.
    """
    unused: set[str] = set()
    for prefix, module in model.named_modules() if report.missing else ():
        if isinstance(module, (EncoderFPN, EncoderFCN)):
            names = {f"{prefix}.encoder.{name}".removeprefix(".") for name in beyond_maps(module.encoder)}
            unused |= names if names <= {*report.missing, *report.fresh} else set()
    missing = tuple(name for name in report.missing if name not in unused)
    fresh = tuple(name for name in model.state_dict() if name in {*report.fresh, *report.missing} - {*missing})
    return replace(report, missing=missing, fresh=fresh)


def _given_parts(prefix: str | None, part: SelectedPart) -> Parts | None:
    """Return the parts that follow from a prefix."""
    if prefix is None:
        return None
    prefix = f"{prefix.rstrip('.')}." if prefix else ""
    return Parts("\0", (prefix,)) if part == "decoder" else Parts(prefix)


def _described(
    asked: Asked, shapes: Mapping[str, Shape], located: Parts | None
) -> tuple[MatchReport, dict[str, Filling]]:
    """Match weights whose parts are known, using the parts of the model or an automatically found prefix."""
    exported = asked.exported
    source = _origins(exported, PLAIN, exported.parts)
    found = _match(asked, source, _keys(shapes, PLAIN, located or exported.parts), shapes, PLAIN)
    encoder = {key[1]: tuple(one.value.shape) for key, one in source.items() if key[0] == "encoder"}
    if asked.part == "decoder" or not encoder or 2 * len(found[0].matched) > len(encoder):
        return found
    # The parts have a longer prefix than expected, or belong to an unknown library.
    most, whole = len(found[0].matched), _flat(exported.weights, PLAIN)
    for spelling in spellings_of(shapes):
        target = _flat(shapes, spelling)
        for names, moved in ((encoder, Parts), (whole, exported.parts.below if exported.parts else Parts)):
            where = best_alignment(names, target)
            if where is not None and where.source == "" and where.shapes > most:
                keys = _keys(shapes, spelling, moved(where.target))
                most, found = where.shapes, _match(asked, source, keys, shapes, spelling)
    return found


def _bare(asked: Asked, shapes: Mapping[str, Shape], located: Parts | None) -> tuple[MatchReport, dict[str, Filling]]:
    """Match a bare weight file, using the spellings and the prefixes that fit best."""
    exported, part = asked.exported, asked.part
    wanted = {
        name: shape
        for name, shape in shapes.items()
        if part == "all" or located is None or located.split(name)[0] == part
    }
    best: tuple[int, int, Spelling, Spelling, Alignment] | None = None
    for ours in spellings_of(wanted):
        target = _flat(wanted, ours)
        for theirs in spellings_of(exported.weights):
            where = best_alignment(_flat(exported.weights, theirs), target)
            if where is not None and (best is None or (where.shapes, where.names) > best[:2]):
                best = (where.shapes, where.names, theirs, ours, where)
    if best is None:
        keys = _keys(shapes, PLAIN, located)
        return _match(asked, _origins(exported, PLAIN, located), keys, shapes, PLAIN)
    _, _, theirs, ours, where = best
    source: dict[Key, Origin] = {}
    for (_, name), origin in _origins(exported, theirs, None).items():
        if name.startswith(where.source):
            source[_key(where.target + name.removeprefix(where.source), located)] = origin
    report, fillings = _match(asked, source, _keys(shapes, ours, located), shapes, ours)
    return _as_foreign(report, exported, theirs, where), fillings


def _as_foreign(report: MatchReport, exported: Exported, spelling: Spelling, where: Alignment) -> MatchReport:
    """Add the file, its spelling and its prefix to a report."""
    told = [] if spelling is PLAIN else [f"names of {spelling.name}"]
    told += [f"prefix {where.source!r}"] if where.source else []
    return replace(report, source=", ".join([exported.path.name, *told]))


def _origins(exported: Exported, spelling: Spelling, parts: Parts | None) -> dict[Key, Origin]:
    """Return the tensors of a file by key. Fused tensors are split."""
    found: dict[Key, Origin] = {}
    for name, value in exported.weights.items():
        pieces = spelling.pieces(name)
        if len(pieces) > 1 and (value.dim() == 0 or len(value) % len(pieces)):
            pieces = (spelling.common(name),)
        for piece, part in zip(pieces, value.chunk(len(pieces)) if len(pieces) > 1 else (value,), strict=True):
            found[_key(piece, parts)] = Origin(name, plain_merging(piece, part) if spelling.unfold else part)
    return found


def _keys(shapes: Mapping[str, Shape], spelling: Spelling, parts: Parts | None) -> dict[str, tuple[Key, ...]]:
    """Return the keys of each tensor in a model."""
    found: dict[str, tuple[Key, ...]] = {}
    for name, shape in shapes.items():
        if parts is not None and parts.split(name)[0] == "head":
            found[name] = (("head", name),)
            continue
        pieces = spelling.pieces(name)
        if len(pieces) > 1 and (not shape or shape[0] % len(pieces)):
            pieces = (spelling.common(name),)
        found[name] = tuple(_key(piece, parts) for piece in pieces)
    return found


def _flat(tensors: Mapping[str, Any], spelling: Spelling) -> dict[str, Shape]:
    """Return shapes by name in the common spelling. Fused tensors are split."""
    found = {}
    for name, value in tensors.items():
        shape = tuple(value.shape) if isinstance(value, Tensor) else tuple(value)
        pieces = spelling.pieces(name)
        for piece in pieces:
            found[piece] = (shape[0] // len(pieces), *shape[1:]) if len(pieces) > 1 and shape else shape
    return {name: shape for name, shape in found.items() if not COMPUTED.search(name)}


def _key(name: str, parts: Parts | None) -> Key:
    """Return the key of a tensor, which is the same in all models."""
    return (ALL, name) if parts is None else parts.split(name)


def _match(
    asked: Asked,
    source: Mapping[Key, Origin],
    keys: Mapping[str, tuple[Key, ...]],
    shapes: Mapping[str, Shape],
    spelling: Spelling,
) -> tuple[MatchReport, dict[str, Filling]]:
    """Match the tensors of a file and a model by their keys."""
    exported, part = asked.exported, asked.part
    never = {key for name in exported.info.get("untrained", ()) for key in _pieces_of(name, exported.parts)}
    source = _with_class_positions(source, keys, shapes, asked.grids)
    first = next((name for name, each in keys.items() if each[0][0] != "head" and len(shapes[name]) == 4), None)
    found = Found()
    for name, each in keys.items():
        where = each[0][0]
        if part != "all" and where not in (part, ALL):
            continue
        origins = [source[key] for key in each if key in source]
        # A trained head fits, or belongs to another task. A bare file does not say what was trained.
        learned = (bool(exported.info) or asked.heads) and len(origins) == len(each)
        if asked.heads:
            learned = learned and tuple(origins[0].value.shape) == shapes[name]
        if (where == "head" and not learned) or any(key in never for key in each):
            found.fresh.append(name)
        elif len(origins) < len(each):
            (found.fresh if COMPUTED.search(name) else found.missing).append(name)
        else:
            how: dict[str, Any] = {"first_convolution": name == first, "grids": asked.grids}
            _fill(found, name, each, origins, shapes[name], spelling, **how)
    foreign = not exported.info or spelling is not PLAIN
    return reported(found, asked, source, keys, never, foreign=foreign), found.fillings


def _pieces_of(name: str, parts: Parts | None) -> list[Key]:
    return [_key(piece, parts) for piece in PLAIN.pieces(name)]


def _fill(
    found: Found,
    name: str,
    keys: Sequence[Key],
    origins: Sequence[Origin],
    shape: Shape,
    spelling: Spelling,
    *,
    first_convolution: bool,
    grids: Grids,
) -> None:
    """Record the values for one tensor of the model, or that its shape does not fit."""
    wanted = (shape[0] // len(keys), *shape[1:]) if len(keys) > 1 else shape
    made = [
        fitted(key[1], origin.value, wanted, first_convolution=first_convolution, grids=grids)
        for key, origin in zip(keys, origins, strict=True)
    ]
    pieces = [one for one in made if one is not None]
    if len(pieces) < len(made):
        found.mismatched.append(Mismatch(name, tuple(origins[0].value.shape), wanted))
        return
    found.matched.append(name)
    found.resampled += [name] if pieces[0].how == "resampled" else []
    found.channels += [name] if pieces[0].how == "channels" else []
    common = keys[0][1]
    finish = (lambda value: plain_merging(common, value, back=True)) if spelling.unfold else None
    found.fillings[name] = Filling(tuple(one.value for one in pieces), finish)


def _with_class_positions(
    source: Mapping[Key, Origin], keys: Mapping[str, tuple[Key, ...]], shapes: Mapping[str, Shape], grids: Grids
) -> dict[Key, Origin]:
    """Add the position of the class token to the token if the model has no position for it."""
    changed = dict(source)
    for name, (key, *_) in keys.items():
        if not key[1].endswith(POSITIONS) or key not in source or len(shapes[name]) != 3:
            continue
        token = (key[0], key[1].removesuffix(POSITIONS) + "cls_token")
        if token in source and source[key].value.dim() == source[token].value.dim() == 3:
            moved = moved_class_position(source[token].value, source[key].value, shapes[name][1], grids)
            if moved is not None:
                changed[token] = Origin(source[token].name, moved)
    return changed
