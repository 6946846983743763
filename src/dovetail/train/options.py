"""What the engine is asked for; "auto" leaves a number to the rules of `dovetail.train.defaults`."""

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
        "auto", "Passes over the images; a warm-up that was not given takes a quarter of them at most.", COUNT
    )
    max_steps: int | None = option(
        None, "Stop after this many optimiser steps; schedules are those of a run of this length.", COUNT
    )
    batch_size: int | Auto = option("auto", "Images per device and forward pass.", Range(1, most=1 << 20), movable=True)
    accumulate: int = option(1, "Forward passes per optimiser step.", COUNT, movable=True)
    lr: float | Auto = option(
        "auto",
        'Peak learning rate; "auto" scales the recipe\'s linearly with the global batch.',
        Range(0, above=True, most=1e38),  # float32's largest, about
    )
    freeze_encoder_epochs: float | Literal["all"] = option(
        0.0,
        "Epochs, whole or not, in which the encoder and its BatchNorm statistics stand still while the decoder and the "
        'heads learn; then all of the network trains. "all" freezes the encoder for the whole run.',
        NOT_NEGATIVE,
    )
    seed: int = option(0, "Seed of every random draw: initial weights, image order, views and dropout.", NOT_NEGATIVE)
    accelerator: Accelerator | Auto = option("auto", "Device type.", movable=True)
    devices: int | Auto = option("auto", "Number of devices on each node.", COUNT, movable=True)
    num_nodes: int = option(
        1, "Number of nodes; in a resumed run it counts where `devices` is given.", COUNT, movable=True
    )
    strategy: Literal["auto", "ddp", "fsdp"] = option(
        "auto",
        '"ddp", or "auto" for it where there are several devices: each holds the whole model. "fsdp": each holds its '
        "part of every weight, for models that are too large for one device.",
        movable=True,
    )
    precision: Precision | Auto = option(
        "auto", 'Number format; "auto" takes bfloat16 autocast where the device computes it natively.'
    )
    workers: int | Auto = option(
        "auto",
        "Loading processes per device. Each prepares several batches ahead. 0 uses one process that prepares one batch "
        "ahead.",
        Range(0, most=4096),
        movable=True,
    )
    log_every_steps: int = option(20, "Steps between two lines of metrics.jsonl.", COUNT, movable=True)
    save_every_minutes: float = option(10.0, "Minutes between two checkpoints.", NOT_NEGATIVE, movable=True)
    keep_every_epochs: int | None = option(
        None, "Epochs between two checkpoints that are kept beside the last one.", COUNT
    )
    skip_nonfinite_steps: int = option(
        0,
        "Steps that may be left out because the loss or a gradient is no finite number, before the run ends for it; "
        "all are in nonfinite.jsonl with their images.",
        NOT_NEGATIVE,
        movable=True,
    )
    knn_readings: int = option(
        20,
        "How often the log has a kNN score, spread evenly over the run. It is also measured before the first step.",
        COUNT,
        movable=True,
    )
    dense_readings: int = option(
        10,
        "How often the log has dense scores, spread evenly over the run. They are also measured before the first step.",
        COUNT,
        movable=True,
    )
