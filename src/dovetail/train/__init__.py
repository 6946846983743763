"""Training: learner, engine, optimisers, checkpoints, monitors.

Names in `__all__` are public. They are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dovetail.public import on_first_use

if TYPE_CHECKING:
    from dovetail.train.learner import Learner
    from dovetail.train.teacher import Teacher

_PUBLIC = {
    "Learner": "dovetail.train.learner",
    "Teacher": "dovetail.train.teacher",
}

__all__ = [
    "Learner",
    "Teacher",
]

__getattr__, __dir__ = on_first_use(__name__, _PUBLIC)
