"""Options of training; `dovetail.train.defaults` resolves values of "auto"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dovetail.options import COUNT, NOT_NEGATIVE, Auto, Options, Range, option

Accelerator = Literal["cpu", "cuda", "mps"]
Precision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Options):
    """Options of the training loop: length, batch, devices, log and checkpoints."""

    epochs: int | Auto = option(
        "auto",
        "Number of passes over the images. Unless `recipe.warmup_epochs` is set, the warm-up takes at most a quarter "
        "of the run.",
        COUNT,
    )
    max_steps: int | None = option(
        None, "Stop after this many optimiser steps. Schedules are planned for this length.", COUNT
    )
    batch_size: int | Auto = option(
        "auto", "Images per device in one forward pass.", Range(1, most=1 << 20), movable=True
    )
    accumulate: int = option(1, "Forward passes per optimiser step.", COUNT, movable=True)
    lr: float | Auto = option(
        "auto",
        'Peak learning rate. "auto" scales the recipe\'s rate linearly with the global batch size.',
        Range(0, above=True, most=1e6),
    )
    freeze_encoder_epochs: float | Literal["all", "auto"] = option(
        "auto",
        "Number of epochs (may be fractional) for which the encoder and its BatchNorm statistics are frozen while the "
        'decoder and the heads are trained. "all" freezes the encoder for the whole run. "auto" means "all" for '
        'encoder-targets on a trained encoder, half of the run for the preset "continue", and 0 otherwise.',
        NOT_NEGATIVE,
    )
    encoder_batch_norm: Literal["train", "frozen", "auto"] = option(
        "auto",
        'BatchNorm of the encoder. With "train" its layers normalise with the statistics of a batch and update the '
        'running ones; with "frozen" they use the running statistics that the run starts from. "auto" means "frozen" '
        'for the preset "continue" and for an encoder that is frozen for the whole run, and "train" otherwise.',
    )
    seed: int = option(0, "Seed of every random draw: initial weights, image order, views and dropout.", NOT_NEGATIVE)
    accelerator: Accelerator | Auto = option("auto", "Device type.", movable=True)
    devices: int | Auto = option("auto", "Number of devices on each node.", COUNT, movable=True)
    num_nodes: int = option(
        1, "Number of nodes. If you set `devices` when resuming, set this option too.", COUNT, movable=True
    )
    strategy: Literal["auto", "ddp", "fsdp"] = option(
        "auto",
        'With "ddp" every device holds the whole model; "auto" uses it on several devices. With "fsdp" every device '
        "holds a part of every weight, for models that are too large for one device.",
        movable=True,
    )
    precision: Precision | Auto = option(
        "auto", 'Numerical precision. "auto" uses bfloat16 autocast where the hardware supports it.'
    )
    workers: int | Auto = option(
        "auto",
        "Number of data-loading processes per device. Each prepares several batches ahead. With 0, a single "
        "separate process prepares one batch ahead.",
        Range(0, most=4096),
        movable=True,
    )
    log_every_steps: int = option(20, "Steps between two lines of the log (metrics.jsonl).", COUNT, movable=True)
    save_every_minutes: float = option(10.0, "Minutes between two checkpoints.", NOT_NEGATIVE, movable=True)
    keep_every_epochs: int | None = option(
        None, "Number of epochs between checkpoints that are kept in addition to the last one.", COUNT
    )
    skip_nonfinite_steps: int = option(
        0,
        "How many steps with a non-finite loss or gradient are skipped before the run ends with an error. Each one is "
        "listed in nonfinite.jsonl with its images.",
        NOT_NEGATIVE,
        movable=True,
    )
    knn_readings: int = option(
        20,
        "Number of kNN scores in the log, spread evenly over the run. The score is also measured before the first "
        "step.",
        COUNT,
        movable=True,
    )
    dense_readings: int = option(
        10,
        "Number of times that the scores on `dense_data` are logged, spread evenly over the run. They are also "
        "measured before the first step.",
        COUNT,
        movable=True,
    )
