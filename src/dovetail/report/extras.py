"""Optional sections at the end of the report page: slots and attention maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from dovetail.networks.vit import ViTNetwork
from dovetail.networks.vit_attention import takes_queries
from dovetail.report.pictures_attention import attention_sheet, query_sheet
from dovetail.report.pictures_slots import slot_sheet
from dovetail.report.sample import slot_terms
from dovetail.report.sheets import Sheet
from dovetail.run.restored import Restored


@dataclass(frozen=True)
class Extra:
    """A section of the page: anchor, title, caption, and sheets of images by name."""

    id: str
    title: str
    words: str
    sheets: Mapping[str, Sheet]


def extras_of(run: Restored, names: Sequence[str], crops: Sequence[Tensor]) -> list[Extra]:
    """Return the sections that apply to this run, or none without images."""
    if not crops:
        return []
    found: list[Extra] = []
    if slot_terms(run.recipe):
        words = "The slot (prototype) of each cell. The seven largest slots have colours and numbers, others are grey."
        found.append(Extra("slots", "Slots", words, slot_sheet(run, names, crops)))
    network = run.after
    if not isinstance(network, ViTNetwork) or not takes_queries(network.vit.blocks[-1]):
        return found
    drawn: list[tuple[str, bool, Callable[[Restored, Sequence[str], Sequence[Tensor]], Sheet]]] = [
        ("cls", network.vit.cls_token is not None, attention_sheet),
        ("queries", any(term.tap == "queries" for term in run.recipe.terms), query_sheet),
    ]
    sheets = {name: draw(run, names, crops) for name, wanted, draw in drawn if wanted}
    words = (
        "Attention of the class token, or of query tokens for five crops, in the last block. The title of each map is "
        "its largest weight relative to the mean: a value near 1 is uniform attention."
    )
    return [*found, Extra("attention", "Attention", words, sheets)] if sheets else found
