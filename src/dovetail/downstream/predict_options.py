"""Options of `dovetail predict`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dovetail.downstream.options import MachineOptions
from dovetail.options import Range, option


@dataclass(frozen=True, kw_only=True)
class PredictOptions(MachineOptions):
    """Options of `dovetail predict`."""

    run: str | Path = option("", "Folder of a fine-tuned run: its `out`.")
    data: str | Path = option("", "Folder of images (searched recursively), or a text file with one path per line.")
    out: str | Path = option("", "Folder for the predictions.")
    min_score: float = option(0.05, "Lowest score of a detection that is written.", Range(0, 1))
