"""Undoing a step: restores the buffers that a forward pass changed, and the optimiser's counters.

A forward pass updates BatchNorm statistics, queues and centres. If it produced values that are not finite, these must
be restored too, or they would affect every later step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Undo:
    """Saves the buffers of a module before a step; `back` restores them and drops the gradients."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._owners: list[dict[str, Tensor | None]] = []  # cached, because a walk over all modules takes a millisecond
        self._places: list[tuple[dict[str, Tensor | None], str]] = []
        self._buffers: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._counts: list[Any] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the buffers; call before the first forward pass of a step."""
        if not self._owners:
            self._owners = [module._buffers for module in self.module.modules() if module._buffers]
        places = [(owner, name, value) for owner in self._owners for name, value in owner.items() if value is not None]
        buffers = [value for _, _, value in places]
        self._places = [(owner, name) for owner, name, _ in places]
        if [id(value) for value in buffers] == [id(value) for value in self._buffers]:
            if buffers:
                torch._foreach_copy_(self._kept, buffers)
            return
        self._buffers, self._kept = buffers, [value.clone() for value in buffers]

    @torch.no_grad()
    def back(self, optimiser: Optimizer) -> None:
        """Restore the buffers and drop all gradients, so that the optimiser does nothing."""
        for (owner, name), buffer, before in zip(self._places, self._buffers, self._kept, strict=True):
            owner[name] = buffer.copy_(before)
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def keep_counts(self, optimiser: Optimizer) -> None:
        """Copy the step counters of the groups, which LAMB advances even without gradients."""
        counts = [group.get("step") for group in optimiser.param_groups]
        self._counts = [count.clone() if isinstance(count, Tensor) else count for count in counts]

    def counts_back(self, optimiser: Optimizer) -> None:
        """Restore the step counters."""
        for group, count in zip(optimiser.param_groups, self._counts, strict=True):
            if count is not None:
                group["step"] = count
            else:
                group.pop("step", None)
