"""What is compared between student and teacher: one idea a file.

Every loss can be used by itself. Its spec builds a module for the head that made its inputs, and the module takes lists
with one output for each view:

    from dovetail.heads.vector import VectorHeadSpec
    from dovetail.objectives import RegressSpec

    loss = RegressSpec().build(VectorHeadSpec(dim=128))
    total = loss([student_1, student_2], [teacher_1, teacher_2]).total
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "BarlowSpec": "decorrelate",
    "DenseContrastSpec": "dense",
    "DistillSpec": "distill",
    "FeaturePredictionSpec": "prediction",
    "KeyContrastSpec": "contrast",
    "Loss": "objective",
    "MaskedPatchSpec": "patches",
    "NTXentSpec": "contrast",
    "Objective": "objective",
    "ObjectiveSpec": "objective",
    "PixelConsistencySpec": "pixels",
    "PredictorSpec": "vector",
    "QueueContrastSpec": "contrast",
    "RegressSpec": "regress",
    "SelfPatchSpec": "patches",
    "SlotSpec": "slots",
    "VICRegSpec": "decorrelate",
    "ZeroCLSpec": "whiten",
}

__all__ = [
    "BarlowSpec",
    "DenseContrastSpec",
    "DistillSpec",
    "FeaturePredictionSpec",
    "KeyContrastSpec",
    "Loss",
    "MaskedPatchSpec",
    "NTXentSpec",
    "Objective",
    "ObjectiveSpec",
    "PixelConsistencySpec",
    "PredictorSpec",
    "QueueContrastSpec",
    "RegressSpec",
    "SelfPatchSpec",
    "SlotSpec",
    "VICRegSpec",
    "ZeroCLSpec",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dovetail.objectives' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dovetail.objectives.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
