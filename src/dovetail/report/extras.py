"""The pictures that end a run's page: slots, attention, as the method and the model have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    """A section of the page: its anchor, heading, words, and sheets by names that may stand in an anchor."""

    id: str
    title: str
    words: str
    sheets: Mapping[str, Sheet]


def extras_of(run: Restored, names: Sequence[str], squares: Sequence[Tensor]) -> list[Extra]:
    """Return the sections that this run can have; none of them without images."""
    if not squares:
        return []
    found: list[Extra] = []
    if slot_terms(run.recipe):
        words = "The prototype that wins each cell. The seven that win most have colours and numbers, others are grey."
        found.append(Extra("slots", "Slots", words, slot_sheet(run, names, squares)))
    network = run.after
    if not isinstance(network, ViTNetwork) or not takes_queries(network.vit.blocks[-1]):
        return found
    drawn: list[tuple[str, bool, Callable[[Restored, Sequence[str], Sequence[Tensor]], Sheet]]] = [
        ("cls", network.vit.cls_token is not None, attention_sheet),
        ("queries", any(term.tap == "queries" for term in run.recipe.terms), query_sheet),
    ]
    sheets = {name: draw(run, names, squares) for name, wanted, draw in drawn if wanted}
    words = (
        "What the class token, and query tokens of five crops, attend to in the last block. Over each picture "
        "stands its largest weight as a multiple of the mean: near 1 the attention is spread evenly."
    )
    return [*found, Extra("attention", "Attention", words, sheets)] if sheets else found
