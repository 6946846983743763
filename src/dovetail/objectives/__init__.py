"""Objectives: losses between student and teacher, one idea per file.

Every loss can be used on its own. Its spec builds a module for the head that computes its inputs, and the module takes
lists with one output per view:

    from dovetail.heads import VectorHeadSpec
    from dovetail.objectives import RegressSpec

    loss = RegressSpec().build(VectorHeadSpec(dim=128))
    total = loss([student_1, student_2], [teacher_1, teacher_2]).total

Names in `__all__` are public. They are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dovetail.public import on_first_use

if TYPE_CHECKING:
    from dovetail.objectives.contrast import KeyContrastSpec, NTXentSpec, QueueContrastSpec
    from dovetail.objectives.decorrelate import BarlowSpec, VICRegSpec
    from dovetail.objectives.dense import DenseContrastSpec
    from dovetail.objectives.distill import DistillSpec
    from dovetail.objectives.objective import Loss, Objective, ObjectiveSpec, connected_zero
    from dovetail.objectives.patches import MaskedPatchSpec, SelfPatchSpec
    from dovetail.objectives.pixels import PixelConsistencySpec
    from dovetail.objectives.prediction import FeaturePredictionSpec
    from dovetail.objectives.regress import RegressSpec
    from dovetail.objectives.segments import SegmentContrastSpec
    from dovetail.objectives.slots import SlotSpec
    from dovetail.objectives.vector import PredictorSpec
    from dovetail.objectives.whiten import ZeroCLSpec

_PUBLIC = {
    "BarlowSpec": "dovetail.objectives.decorrelate",
    "DenseContrastSpec": "dovetail.objectives.dense",
    "DistillSpec": "dovetail.objectives.distill",
    "FeaturePredictionSpec": "dovetail.objectives.prediction",
    "KeyContrastSpec": "dovetail.objectives.contrast",
    "Loss": "dovetail.objectives.objective",
    "MaskedPatchSpec": "dovetail.objectives.patches",
    "NTXentSpec": "dovetail.objectives.contrast",
    "Objective": "dovetail.objectives.objective",
    "ObjectiveSpec": "dovetail.objectives.objective",
    "PixelConsistencySpec": "dovetail.objectives.pixels",
    "PredictorSpec": "dovetail.objectives.vector",
    "QueueContrastSpec": "dovetail.objectives.contrast",
    "RegressSpec": "dovetail.objectives.regress",
    "SegmentContrastSpec": "dovetail.objectives.segments",
    "SelfPatchSpec": "dovetail.objectives.patches",
    "SlotSpec": "dovetail.objectives.slots",
    "VICRegSpec": "dovetail.objectives.decorrelate",
    "ZeroCLSpec": "dovetail.objectives.whiten",
    "connected_zero": "dovetail.objectives.objective",
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
    "SegmentContrastSpec",
    "SelfPatchSpec",
    "SlotSpec",
    "VICRegSpec",
    "ZeroCLSpec",
    "connected_zero",
]

__getattr__, __dir__ = on_first_use(__name__, _PUBLIC)
