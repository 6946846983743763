"""Taking a step back before it is taken: what a forward pass has moved, and the optimiser's own counters.

A forward pass moves BatchNorm's statistics, queues and centres. Where one gave numbers that are not finite, these
have to go back too, or every later step would see them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Undo:
    """Keeps a module's buffers as they were before a step; `back` restores them and drops the gradients."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._counts: list[Any] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the buffers; call before the first forward pass of a step."""
        self._buffers = [(buffer, buffer.clone()) for buffer in self.module.buffers()]

    @torch.no_grad()
    def back(self, optimiser: Optimizer) -> None:
        """Restore the buffers and drop all gradients, so that the optimiser finds nothing to do."""
        for buffer, before in self._buffers:
            buffer.copy_(before)
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def keep_counts(self, optimiser: Optimizer) -> None:
        """Copy the groups' counters of steps, which LAMB keeps and moves even without a gradient."""
        counts = [group.get("step") for group in optimiser.param_groups]
        self._counts = [count.clone() if isinstance(count, Tensor) else count for count in counts]

    def counts_back(self, optimiser: Optimizer) -> None:
        """Restore the counters of steps."""
        for group, count in zip(optimiser.param_groups, self._counts, strict=True):
            if count is not None:
                group["step"] = count
            else:
                group.pop("step", None)
