"""The pictures that end a run's page: slots, attention, correspondences, as the method and the model have them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dovetail.networks.vit import ViTNetwork
from dovetail.networks.vit_attention import takes_queries
from dovetail.report.pictures_attention import attention_sheet, query_sheet
from dovetail.report.pictures_slots import slot_sheet
from dovetail.report.restored import Restored
from dovetail.report.sample import slot_terms
from dovetail.report.sheets import Sheet


@dataclass(frozen=True)
class Extra:
    """A section of the page: its anchor, heading, words, and sheets as data URIs."""

    id: str
    title: str
    words: str
    uris: tuple[str, ...]


def extras_of(run: Restored, names: Sequence[str], squares: Sequence[Tensor]) -> list[Extra]:
    """Return the sections that this run can have; none of them without photographs."""
    if not squares:
        return []
    found: list[Extra] = []
    if slot_terms(run.recipe):
        sheets = slot_sheet(run, names, squares)
        words = "The prototype that wins each cell. The seven that win most have colours and numbers, others are grey."
        found.append(Extra("slots", "Slots", words, tuple(map(sheet_uri, sheets.values()))))
    network = run.after
    if not isinstance(network, ViTNetwork) or not takes_queries(network.vit.blocks[-1]):
        return found
    drawn: list[tuple[bool, Callable[[Restored, Sequence[str], Sequence[Tensor]], Sheet]]] = [
        (network.vit.cls_token is not None, attention_sheet),
        (any(term.tap == "queries" for term in run.recipe.terms), query_sheet),
    ]
    uris = tuple(sheet_uri(draw(run, names, squares)) for wanted, draw in drawn if wanted)
    words = "What the class token, and query tokens of five crops, attend to in the last block."
    return [*found, Extra("attention", "Attention", words, uris)] if uris else found


def sheet_uri(sheet: Sheet) -> str:
    """Return a sheet as a data URI."""
    file = io.BytesIO()
    sheet.save(file)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
