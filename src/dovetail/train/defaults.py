"""The numbers of a run, and the rules that fill in those left on "auto".

Everything is resolved here, before the first step, into one plain `Settings`; nothing is decided later in secret.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from dovetail.errors import DovetailError, counted, unknown_name
from dovetail.recipe import Recipe
from dovetail.schedules import Moment

Accelerator = Literal["cpu", "cuda", "mps"]
Precision = Literal["32-true", "bf16-mixed"]
Auto = Literal["auto"]

STRATEGIES = ("auto", "ddp", "fsdp")
CPU_BATCH = 32
IMAGES_PER_GIB = 4  # with two 224 px views: room for student, teacher and a decoder of ResNet-50's size
REFERENCE_PIXELS = 2 * 224 * 224
MIN_STEPS = 2000  # where images are so few that the paper's epochs would give fewer
MAX_GPU_WORKERS = 16
MAX_CPU_WORKERS = 4


@dataclass(frozen=True)
class Settings:
    """Every number of a run, resolved.

    Attributes:
        seed: Of the images' order, the views, and every step's random numbers.
        num_images: Images in the training set.
        accelerator: "cpu", "cuda" or "mps".
        devices: Processes on each node.
        num_nodes: Nodes.
        batch_size: Images per device and forward pass.
        accumulate: Forward passes per optimiser step.
        epochs: Passes over the images.
        steps_per_epoch: Optimiser steps in one pass; the remainder of an epoch is dropped.
        peak_lr: Learning rate at the end of the warm-up.
        precision: "32-true" or "bf16-mixed" (autocast).
        workers: Loading processes per device, each some batches ahead; 0 is one that reads only the next batch.
        strategy: "ddp", or "auto" for it where there are several devices: each holds the whole model; "fsdp": each
            holds its part of every weight.
        sync_batch_norm: Take BatchNorm's statistics over the images of all devices.
        deterministic: Ask the GPU for reproducible kernels (slower); on a processor runs are reproducible anyway.
        log_every_steps: Steps between two lines of the log.
        save_every_minutes: Minutes between two writes of `last.ckpt`.
        save_every_steps: Steps between two writes of `last.ckpt`; None leaves it to the minutes.
        keep_every_epochs: Epochs between two checkpoints that are kept; None keeps none but the last.
        max_steps: The run ends after this many steps, and schedules with it; None for the steps of `epochs`.
        skip_nonfinite_steps: Steps of the whole run that may be left out because the loss or gradient is not finite.
        knn_readings: Lines of the log, evenly over the run, that come with kNN where labelled images are given.
        freeze_encoder_epochs: Epochs in which the encoder stands still; infinite for the whole run.
        dense_readings: Lines of the log, evenly over the run, that come with dense measures where masks are given.
    """

    seed: int
    num_images: int
    accelerator: Accelerator
    devices: int
    num_nodes: int
    batch_size: int
    accumulate: int
    epochs: int
    steps_per_epoch: int
    peak_lr: float
    precision: Precision
    workers: int
    strategy: str = "auto"
    sync_batch_norm: bool = False
    deterministic: bool = False
    log_every_steps: int = 20
    save_every_minutes: float = 10.0
    save_every_steps: int | None = None
    keep_every_epochs: int | None = None
    max_steps: int | None = None
    skip_nonfinite_steps: int = 0
    knn_readings: int = 20
    freeze_encoder_epochs: float = 0.0
    dense_readings: int = 10

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of every weight."""
        return self.strategy == "fsdp"

    @property
    def world_size(self) -> int:
        """Processes in the whole run."""
        return self.devices * self.num_nodes

    @property
    def global_batch(self) -> int:
        """Images per optimiser step."""
        return self.batch_size * self.accumulate * self.world_size

    @property
    def total_steps(self) -> int:
        """Optimiser steps in the whole run."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def moment(self, step: int) -> Moment:
        """Return where the run stands when `step` optimiser steps are done."""
        return Moment(step, self.total_steps, self.steps_per_epoch)

    def logs_after(self, step: int) -> bool:
        """Whether the log gets a line when `step` steps are done."""
        return step % self.log_every_steps == 0 or step == self.total_steps

    def knn_after(self, step: int) -> bool:
        """Whether the log's line after `step` steps comes with kNN; the last one does."""
        return self._reads_after(step, self.knn_readings)

    def dense_after(self, step: int) -> bool:
        """Whether the log's line after `step` steps comes with dense measures; the last one does."""
        return self._reads_after(step, self.dense_readings)

    def _reads_after(self, step: int, readings: int) -> bool:
        line_before = (step - 1) // self.log_every_steps * self.log_every_steps
        done, before = (readings * one // self.total_steps for one in (step, line_before))
        return done > before

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is due when `step` steps are done, whatever the clock says."""
        by_steps = self.save_every_steps is not None and step % self.save_every_steps == 0
        return by_steps or self.keeps_after(step) or step == self.total_steps

    def keeps_after(self, step: int) -> bool:
        """Whether the checkpoint of `step` is kept under its epoch's name."""
        every = self.keep_every_epochs
        return every is not None and step % (every * self.steps_per_epoch) == 0

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for YAML."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Return the settings that `as_dict` gave; raise `DovetailError` for missing or unknown names."""
        known = {field.name for field in fields(cls)}
        added = {"skip_nonfinite_steps": 0, "knn_readings": 20, "freeze_encoder_epochs": 0.0, "dense_readings": 10}
        values = added | values  # runs from before there were these
        if set(values) != known:
            odd = ", ".join(sorted(set(values) ^ known))
            raise DovetailError(f"The settings' fields do not fit this version ({odd}); start the run anew.")
        return cls(**values)

    def table(self) -> str:
        """Return the settings as aligned lines of "name  value", with what follows from them."""
        rows = {
            **self.as_dict(),
            "world_size": self.world_size,
            "global_batch": self.global_batch,
            "total_steps": self.total_steps,
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {_shown(value)}" for name, value in rows.items())


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Wishes:
    """What was asked for; "auto" leaves a number to the rules of this module. Fields as in `Settings`."""

    seed: int = 0
    accelerator: Accelerator | Auto = "auto"
    devices: int | Auto = "auto"
    num_nodes: int = 1
    batch_size: int | Auto = "auto"
    accumulate: int = 1
    epochs: int | Auto = "auto"
    peak_lr: float | Auto = "auto"
    precision: Precision | Auto = "auto"
    workers: int | Auto = "auto"
    strategy: str = "auto"
    sync_batch_norm: bool | Auto = "auto"
    deterministic: bool = False
    log_every_steps: int = 20
    save_every_minutes: float = 10.0
    save_every_steps: int | None = None
    keep_every_epochs: int | None = None
    max_steps: int | None = None
    skip_nonfinite_steps: int = 0
    knn_readings: int = 20
    freeze_encoder_epochs: float = 0.0
    dense_readings: int = 10


def resolve(recipe: Recipe, wishes: Wishes, *, num_images: int) -> Settings:
    """Return the settings of a run of `recipe` on `num_images` images.

    Rules for "auto":

    * accelerator: a CUDA GPU, else Apple's, else the processor. Devices: all GPUs, or one processor process.
    * batch_size: 32 on a processor; on a GPU 4 images per GiB for two 224 px views, fewer in proportion to the
      views' pixels, as a power of two. Never more than the paper's batch or the images there are.
    * epochs: the paper's, and more where images are so few that it would be less than 2,000 steps.
    * peak_lr: linear scaling, base_lr * global batch / 256.
    * precision: bfloat16 autocast where the device computes it natively, else float32.
    * workers: a processor run uses half the cores, at most 4; a GPU its share, at most 16; one at least, as only a
      process of its own can be ended when a decoder hangs.
    * sync_batch_norm: on several devices, but for methods that shuffle images among them instead (MoCo v2, DenseCL):
      statistics of all images would tell the batch's keys from the queue's.

    Raises:
        DovetailError: For numbers out of range, or fewer images than one step takes.
    """
    _check_ranges(wishes)
    accelerator = wishes.accelerator if wishes.accelerator != "auto" else best_accelerator()
    if accelerator == "mps" and wishes.strategy == "fsdp":
        raise DovetailError("Apple's GPU cannot share a model with others; leave --strategy out.")
    devices = wishes.devices if wishes.devices != "auto" else _all_devices(accelerator)
    world = devices * wishes.num_nodes
    share = world * wishes.accumulate
    batch_size = wishes.batch_size
    if batch_size == "auto":
        batch_size = auto_batch_size(recipe, accelerator, images=num_images, share=share)
    global_batch = batch_size * share
    if num_images < global_batch:
        raise DovetailError(
            f"There {'is' if num_images == 1 else 'are'} {counted(num_images, 'image')}, fewer than the "
            f"{global_batch} of one step; choose a batch size of at most {max(num_images // share, 1)} per device "
            "or add images."
        )
    steps_per_epoch = num_images // global_batch
    enough_epochs = max(recipe.epochs, math.ceil(MIN_STEPS / steps_per_epoch))
    epochs = enough_epochs if wishes.epochs == "auto" else wishes.epochs
    if wishes.max_steps is not None:  # what runs is written down, and read again as what was asked for
        epochs = min(epochs, math.ceil(wishes.max_steps / steps_per_epoch))
    sync = wishes.sync_batch_norm
    return Settings(
        seed=wishes.seed,
        num_images=num_images,
        accelerator=accelerator,
        devices=devices,
        num_nodes=wishes.num_nodes,
        batch_size=batch_size,
        accumulate=wishes.accumulate,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        peak_lr=recipe.optimiser.peak_lr(global_batch) if wishes.peak_lr == "auto" else wishes.peak_lr,
        precision=best_precision(accelerator) if wishes.precision == "auto" else wishes.precision,
        workers=auto_workers(accelerator, devices) if wishes.workers == "auto" else wishes.workers,
        strategy=wishes.strategy,
        sync_batch_norm=world > 1 and not recipe.shuffle_batch_norm if sync == "auto" else sync,
        deterministic=wishes.deterministic,
        log_every_steps=wishes.log_every_steps,
        save_every_minutes=wishes.save_every_minutes,
        save_every_steps=wishes.save_every_steps,
        keep_every_epochs=wishes.keep_every_epochs,
        max_steps=wishes.max_steps,
        skip_nonfinite_steps=wishes.skip_nonfinite_steps,
        knn_readings=wishes.knn_readings,
        freeze_encoder_epochs=float(wishes.freeze_encoder_epochs),
        dense_readings=wishes.dense_readings,
    )


def _check_ranges(wishes: Wishes) -> None:
    lowest = {
        "devices": 1, "num_nodes": 1, "batch_size": 1, "accumulate": 1, "epochs": 1, "workers": 0,
        "log_every_steps": 1, "save_every_minutes": 0, "save_every_steps": 1, "keep_every_epochs": 1, "max_steps": 1,
        "seed": 0, "skip_nonfinite_steps": 0, "knn_readings": 1, "dense_readings": 1,
    }  # fmt: skip
    for name, low in lowest.items():
        value = getattr(wishes, name)
        if value in ("auto", None):
            continue
        if isinstance(value, str):
            raise DovetailError(f"{name} is {value!r}; give a number or leave it out.")
        if not low <= value < math.inf:  # NaN fails too
            raise DovetailError(f"{name} is {value}; it must be at least {low}.")
    frozen: Any = wishes.freeze_encoder_epochs
    if isinstance(frozen, str) or not frozen >= 0:
        raise DovetailError(f"freeze_encoder_epochs is {frozen}; give a number of epochs from 0, or 'all'.")
    if wishes.strategy not in STRATEGIES:
        raise unknown_name("strategy", wishes.strategy, STRATEGIES)
    for name, known in (("accelerator", get_args(Accelerator)), ("precision", get_args(Precision))):
        if getattr(wishes, name) not in ("auto", *known):
            raise unknown_name(name, str(getattr(wishes, name)), ("auto", *known))
    peak_lr: Any = wishes.peak_lr  # from Python it may be any text
    if peak_lr != "auto" and (isinstance(peak_lr, str) or not 0 < peak_lr < math.inf):
        raise DovetailError(f"peak_lr is {peak_lr}; it must be a positive number.")


def best_accelerator() -> Accelerator:
    """Return the accelerator of this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _all_devices(accelerator: Accelerator) -> int:
    return max(torch.cuda.device_count(), 1) if accelerator == "cuda" else 1


def auto_batch_size(recipe: Recipe, accelerator: Accelerator, *, images: int, share: int) -> int:
    """Return the images per device and forward pass; see `resolve`. `share` is devices times accumulation."""
    batch = CPU_BATCH
    if accelerator == "cuda":
        gib = min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())) / 2**30
        pixels = sum(view.size_px**2 for view in recipe.views.views)
        batch = power_of_two_below(gib * IMAGES_PER_GIB * REFERENCE_PIXELS / pixels)
    most = min(recipe.batch_size, images) // share
    return max(min(batch, power_of_two_below(most)), 1)


def power_of_two_below(value: float) -> int:
    """Return the largest power of two that is at most `value`, at least 1."""
    return 1 << max(int(value).bit_length() - 1, 0)


def best_precision(accelerator: Accelerator) -> Precision:
    """Return bfloat16 autocast where the device has its arithmetic, else float32."""
    if accelerator == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = accelerator == "cpu" and processor_has_bfloat16()
    return "bf16-mixed" if has else "32-true"


def processor_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bfloat16 natively (AVX512-BF16 or AMX-BF16), as Linux lists its features."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def auto_workers(accelerator: Accelerator, devices: int) -> int:
    """Return the number of loading processes per device; see `resolve`."""
    cores = available_cores()
    if accelerator == "cuda":
        return min(MAX_GPU_WORKERS, max(cores // devices, 1))
    return min(MAX_CPU_WORKERS, max(cores // 2, 1))


def available_cores() -> int:
    """Return the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
