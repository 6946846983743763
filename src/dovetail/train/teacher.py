"""A teacher: the exponential moving average of any module.

It does not depend on shapes: all parameters of a module are updated together.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dovetail.schedules import Moment, Schedule, value_at
from dovetail.train.parts import own_part


class Teacher(nn.Module):
    """The moving average of a module: `teacher = m teacher + (1 - m) student` (MoCo, BYOL), without gradients.

    Attributes:
        module: The averaged copy. Its buffers, such as BatchNorm statistics, come from its own forward passes.
        momentum: m, a number or a schedule such as `Cosine(0.99, 1.0)`.

    Example:
        >>> student = nn.Linear(4, 2)
        >>> teacher = Teacher(student, momentum=0.5)
        >>> with torch.no_grad():
        ...     _ = student.weight.add_(2.0)
        >>> teacher.follow(student, Moment(step=1, total_steps=10, steps_per_epoch=5))
        >>> bool(torch.allclose(teacher.module.weight, student.weight - 1.0))
        True
        >>> any(parameter.requires_grad for parameter in teacher.parameters())
        False
    """

    def __init__(self, student: nn.Module, *, momentum: Schedule) -> None:
        super().__init__()
        self.module = copy.deepcopy(student).requires_grad_(False)
        self.momentum = momentum

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the averaged copy without gradients."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def follow(self, student: nn.Module, moment: Moment) -> None:
        """Update the average; call it once after each optimiser step."""
        average_into([*self.module.parameters()], [*student.parameters()], value_at(self.momentum, moment))


def average_into(target: list[Tensor], source: list[Tensor], momentum: float) -> None:
    """Set `target = momentum * target + (1 - momentum) * source` for all tensors in one pass."""
    if target:
        torch._foreach_lerp_([own_part(value) for value in target], [own_part(value) for value in source], 1 - momentum)
