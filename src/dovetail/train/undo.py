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
        self._owners: list[dict[str, Tensor | None]] = []  # walking all modules at every step would cost a millisecond
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
        """Restore the buffers and drop all gradients, so that the optimiser finds nothing to do."""
        for (owner, name), buffer, before in zip(self._places, self._buffers, self._kept, strict=True):
            owner[name] = buffer.copy_(before)
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
