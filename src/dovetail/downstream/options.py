"""Options that several verbs on labelled data share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dovetail.options import COUNT, NOT_NEGATIVE, SHARE, Auto, Options, Range, option

RATE = Range(0, above=True, most=1e6)


@dataclass(frozen=True, kw_only=True)
class MachineOptions(Options):
    """Where a verb computes."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "Device type.")
    precision: Literal["auto", "bf16", "float32"] = option(
        "auto", 'Number format. "auto" uses bfloat16 autocast where the hardware supports it.'
    )
    workers: int | Auto = option("auto", "Threads that read images.", Range(0, most=4096))


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(Options):
    """What every verb takes that measures a run on labelled images."""

    run: str | Path | None = option(None, "Run folder of a pre-training.")
    data: str | Path = option("", "Labelled dataset.")
    out: str | Path = option("", "Folder for results.json. Default: a folder in the run folder.")
    model: str | None = option(None, "Model by name, with random weights, instead of a run.")
    seed: int = option(0, "Seed of every random draw.", NOT_NEGATIVE)
    value_range: Sequence[float] = option(
        (), "Values of black and white in images with more than 8 bits per channel. Default: the run's."
    )
    check: bool = option(False, "Read the whole dataset, list all its faults, and exit.")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(MeasureOptions):
    """What every kind of fine-tuning takes."""

    model: str | None = option(
        None, "Model to fine-tune, if it is not the run's. Without a run it starts from random weights."
    )
    start: Sequence[str] = option(
        ("auto",),
        "What to load of the run: random, encoder, decoder, all; several make several rows of the table. "
        '"auto" loads all that fits, without a run random weights.',
    )
    fraction: Sequence[float] = option(
        (1.0,), "Shares of the labelled training images to use, as nested, class-balanced subsets.", SHARE
    )
    seeds: int = option(1, "Trials for each row of the table, with the seeds `seed`, `seed` + 1 and so on.", COUNT)
    seed: int = option(0, "Seed of subsets, new weights, image order and augmentation.", NOT_NEGATIVE)
