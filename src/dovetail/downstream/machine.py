"""Device, precision and loading threads of evaluation and fine-tuning, with the same defaults as pre-training."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from dovetail.errors import OptionsError, ResourceError, RunError
from dovetail.train.defaults import available_cores, best_accelerator, best_precision
from dovetail.train.step import is_convolutional

Accelerator = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "bf16", "float32"]
Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_THREADS = 16


@dataclass(frozen=True)
class Machine:
    """Resolved `device` and `precision`, and the number of `threads` that read images (0 is the main thread)."""

    device: str
    precision: Literal["bf16", "float32"]
    threads: int

    def mark(self) -> str:
        """Return the properties of this machine that affect the scores."""
        return f"{self.device} {self.precision}"

    def autocast(self) -> AbstractContextManager[None]:
        """Return the autocast context of the precision."""
        if self.precision == "bf16":
            return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)
        return nullcontext()

    def place(self, model: nn.Module) -> nn.Module:
        """Move `model` to the device, with channels-last memory format for convolutional models."""
        model = model.to(self.device)
        return model.to(memory_format=torch.channels_last) if is_convolutional(model) else model


def machine(
    accelerator: Accelerator = "auto", precision: Precision = "auto", workers: int | Literal["auto"] = "auto"
) -> Machine:
    """Return the device, precision and number of threads, with "auto" resolved.

    Raises:
        DovetailError: The accelerator is not available, or the number of workers is negative.
    """
    kind = best_accelerator() if accelerator == "auto" else accelerator
    if kind == "cuda" and not torch.cuda.is_available():
        raise ResourceError("This machine has no CUDA GPU that torch can use; use --accelerator auto.")
    if workers != "auto" and workers < 0:
        raise OptionsError(f"workers is {workers}; it must be at least 0.")
    if precision == "auto":
        precision = "bf16" if best_precision(kind) == "bf16-mixed" else "float32"
    threads = min(available_cores() - 1, MAX_THREADS) if workers == "auto" else workers
    return Machine(kind, precision, threads)


def ahead(function: Callable[[Item], Result], items: Iterable[Item], *, threads: int) -> Iterator[Result]:
    """Yield `function(item)` in order. Each of the `threads` prefetches up to two results.

    The function must not use global random states. Reading and decoding images release the GIL.
    """
    if threads <= 0:
        yield from map(function, items)
        return
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def checked_loss(loss: Tensor, step: int) -> float:
    """Return the loss of a step (from 0) as a float. Raise `RunError` if it is NaN or infinite."""
    value = loss.item()
    if not math.isfinite(value):
        raise RunError(f"The loss is {value} at step {step + 1}; use a lower --lr.")
    return value


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalise images [B, C, H, W] in 0 to 255 by the mean and standard deviation of values in [0, 1]."""
    centre = torch.tensor(mean, device=images.device).view(-1, 1, 1)
    spread = torch.tensor(std, device=images.device).view(-1, 1, 1)
    return (images.float() / 255 - centre) / spread
