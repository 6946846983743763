"""The settings of a run, and the rules for values of "auto".

All values are resolved here, before the first step, into one plain `Settings`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import torch

from dovetail.errors import OptionsError, RunError, counted
from dovetail.files.schema import converted
from dovetail.options import option_infos
from dovetail.recipe import Recipe
from dovetail.schedules import Moment
from dovetail.train.options import Accelerator, EngineOptions, Precision

CPU_BATCH = 32
IMAGES_PER_GIB = 4  # with two 224 px views; leaves room for student, teacher and a decoder for a ResNet-50
REFERENCE_PIXELS = 2 * 224 * 224
MIN_STEPS = 2000  # if the paper's epochs give fewer steps because there are few images
MAX_GPU_WORKERS = 16
MAX_CPU_WORKERS = 4


AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class _Sizes(TypedDict, total=False):
    """Sizes that `Settings` computes with."""

    batch_size: AtLeastOne
    accumulate: AtLeastOne
    devices: AtLeastOne
    num_nodes: AtLeastOne
    num_images: AtLeastOne
    steps_per_epoch: AtLeastOne
    epochs: AtLeastOne
    max_steps: AtLeastOne | None


@dataclass(frozen=True, kw_only=True)
class Settings(EngineOptions):
    """All settings of a run: the options of training without "auto", and values derived from them.

    Attributes:
        num_images: Number of training images.
        steps_per_epoch: Optimiser steps per epoch; the remainder of an epoch is dropped.
        sync_batch_norm: Synchronise BatchNorm statistics over all devices.
        deterministic: Use reproducible (slower) kernels on GPUs; runs on CPUs are always reproducible.
        save_every_steps: Steps between two writes of `last.ckpt`; None uses only the minutes.
        lr: Learning rate at the end of the warm-up.
        freeze_encoder_epochs: Epochs with a frozen encoder; infinite for the whole run.
        encoder_batch_norm: "train", or "frozen" for BatchNorm layers of the encoder that keep their running statistics.
    """

    num_images: int
    steps_per_epoch: int
    sync_batch_norm: bool = False
    deterministic: bool = False
    save_every_steps: int | None = None
    # Resolved, so no longer "auto".
    accelerator: Accelerator
    devices: int
    batch_size: int
    epochs: int
    lr: float
    precision: Precision
    workers: int
    freeze_encoder_epochs: float = 0.0
    encoder_batch_norm: Literal["train", "frozen"] = "train"

    @property
    def sharded(self) -> bool:
        """Whether the weights are sharded over the processes."""
        return self.strategy == "fsdp"

    @property
    def world_size(self) -> int:
        """Number of processes of the run."""
        return self.devices * self.num_nodes

    @property
    def global_batch(self) -> int:
        """Number of images per optimiser step."""
        return self.batch_size * self.accumulate * self.world_size

    @property
    def total_steps(self) -> int:
        """Number of optimiser steps of the run."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def moment(self, step: int) -> Moment:
        """Return the moment of the run after `step` optimiser steps."""
        return Moment(step, self.total_steps, self.steps_per_epoch)

    def logs_after(self, step: int) -> bool:
        """Whether to write a line of the log after `step` steps."""
        return step % self.log_every_steps == 0 or step == self.total_steps

    def knn_after(self, step: int) -> bool:
        """Whether the line after `step` steps includes kNN; the last line always does."""
        return self._reads_after(step, self.knn_readings)

    def dense_after(self, step: int) -> bool:
        """Whether the line after `step` steps includes dense scores; the last line always does."""
        return self._reads_after(step, self.dense_readings)

    def _reads_after(self, step: int, readings: int) -> bool:
        line_before = (step - 1) // self.log_every_steps * self.log_every_steps
        done, before = (readings * one // self.total_steps for one in (step, line_before))
        return done > before

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps, independent of the time."""
        by_steps = self.save_every_steps is not None and step % self.save_every_steps == 0
        return by_steps or self.keeps_after(step) or step == self.total_steps

    def keeps_after(self, step: int) -> bool:
        """Whether to keep the checkpoint of `step` under the name of its epoch."""
        every = self.keep_every_epochs
        return every is not None and step % (every * self.steps_per_epoch) == 0

    def engine_options(self) -> dict[str, Any]:
        """Return the training options by name."""
        return {name: getattr(self, name) for name in option_infos(EngineOptions)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Return the settings from the result of `as_dict`, of this or an earlier version.

        Raises:
            RunError: If names are missing or unknown, or sizes are not positive integers.
        """
        values = {("lr" if name == "peak_lr" else name): value for name, value in values.items()}
        known = {field.name: field.default for field in fields(cls)}
        odd = sorted({*values} - {*known} | {name for name, default in known.items() if default is MISSING} - {*values})
        if odd:
            raise RunError(f"The saved settings do not match this version ({', '.join(odd)}); start a new run.")
        converted(dict(values), _Sizes, "A checkpoint's settings", "use another checkpoint")
        return cls(**values)

    def table(self) -> str:
        """Return the settings, with derived values, as aligned lines of "name  value"."""
        rows = {
            **self.as_dict(),
            "freeze_encoder_epochs": self._freeze_in_words(),
            "world_size": self.world_size,
            "global_batch": self.global_batch,
            "total_steps": self.total_steps,
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {_shown(value)}" for name, value in rows.items())

    def _freeze_in_words(self) -> str:
        """Return the epochs with a frozen encoder, with their steps."""
        epochs = self.freeze_encoder_epochs
        if epochs == 0 or math.isinf(epochs):
            return "all" if epochs else "0"
        return f"{epochs:g} ({counted(min(round(epochs * self.steps_per_epoch), self.total_steps), 'step')})"


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def resolve(recipe: Recipe, options: EngineOptions, *, num_images: int) -> Settings:
    """Return the settings of a run of `recipe` on `num_images` images.

    Rules for "auto":

    * accelerator: a CUDA GPU, otherwise Apple's GPU, otherwise the CPU. Devices: all GPUs, or one process on the CPU.
    * batch_size: 32 on a CPU; on a GPU 4 images per GiB for two 224 px views, scaled by the number of pixels, as a
      power of two. At most the paper's batch size and the number of images.
    * epochs: those of the paper, or more to reach 2,000 steps.
    * lr: linear scaling, base_lr * global batch / 256.
    * precision: bfloat16 autocast if the device supports it natively, otherwise float32.
    * workers: half the cores on a CPU, at most 4; a share of the cores per GPU, at most 16. At least one, because only
      a separate process can be ended when a decoder hangs.
    * sync_batch_norm: on several devices, except for methods that shuffle images among them (MoCo v2, DenseCL).
      Synchronised statistics would reveal which keys belong to the batch and which to the queue.

    Raises:
        OptionsError: If a value is out of range, or there are fewer images than one step needs.
    """
    accelerator = options.accelerator if options.accelerator != "auto" else best_accelerator()
    if accelerator == "mps" and options.strategy == "fsdp":
        raise OptionsError("--strategy is not supported on Apple's GPU; leave it out.")
    devices = options.devices if options.devices != "auto" else _all_devices(accelerator)
    world = devices * options.num_nodes
    share = world * options.accumulate
    batch_size = options.batch_size
    if batch_size == "auto":
        batch_size = auto_batch_size(recipe, accelerator, images=num_images, share=share)
    global_batch = batch_size * share
    if num_images < global_batch:
        raise OptionsError(
            f"There {'is' if num_images == 1 else 'are'} {counted(num_images, 'image')}, fewer than the "
            f"{global_batch} of one step; choose a batch size of at most {max(num_images // share, 1)} per device "
            "or add images."
        )
    steps_per_epoch = num_images // global_batch
    enough_epochs = max(recipe.epochs, math.ceil(MIN_STEPS / steps_per_epoch))
    epochs = enough_epochs if options.epochs == "auto" else options.epochs
    if options.max_steps is not None:  # the saved value is read again as an option when resuming
        epochs = min(epochs, math.ceil(options.max_steps / steps_per_epoch))
    frozen = options.freeze_encoder_epochs
    batch_norm = options.encoder_batch_norm
    if batch_norm == "auto":
        batch_norm = "frozen" if frozen == "all" else "train"
    filled: dict[str, Any] = {
        "accelerator": accelerator,
        "devices": devices,
        "batch_size": batch_size,
        "epochs": epochs,
        "lr": recipe.optimiser.peak_lr(global_batch) if options.lr == "auto" else options.lr,
        "precision": best_precision(accelerator) if options.precision == "auto" else options.precision,
        "workers": auto_workers(accelerator, devices) if options.workers == "auto" else options.workers,
        "freeze_encoder_epochs": math.inf if frozen == "all" else 0.0 if frozen == "auto" else float(frozen),
        "encoder_batch_norm": batch_norm,
    }
    return Settings(
        **{name: getattr(options, name) for name in option_infos(EngineOptions)} | filled,
        num_images=num_images,
        steps_per_epoch=steps_per_epoch,
        sync_batch_norm=world > 1 and not recipe.shuffle_batch_norm,
    )


def best_accelerator() -> Accelerator:
    """Return the accelerator of this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _all_devices(accelerator: Accelerator) -> int:
    return max(torch.cuda.device_count(), 1) if accelerator == "cuda" else 1


def auto_batch_size(recipe: Recipe, accelerator: Accelerator, *, images: int, share: int) -> int:
    """Return the number of images per device and forward pass; see `resolve`. `share` is devices times accumulation."""
    batch = CPU_BATCH
    if accelerator == "cuda":
        gib = min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())) / 2**30
        pixels = sum(view.pixels for view in recipe.views.views)
        batch = power_of_two_below(gib * IMAGES_PER_GIB * REFERENCE_PIXELS / pixels)
    most = min(recipe.batch_size, images) // share
    return max(min(batch, power_of_two_below(most)), 1)


def power_of_two_below(value: float) -> int:
    """Return the largest power of two that is at most `value`, at least 1."""
    return 1 << max(int(value).bit_length() - 1, 0)


def best_precision(accelerator: Accelerator) -> Precision:
    """Return bfloat16 autocast if the device supports it natively, otherwise float32."""
    if accelerator == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = accelerator == "cpu" and processor_has_bfloat16()
    return "bf16-mixed" if has else "32-true"


def processor_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU supports bfloat16 natively (AVX512-BF16 or AMX-BF16), from the features that Linux lists."""
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
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
