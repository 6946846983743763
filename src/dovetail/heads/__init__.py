"""Heads: modules between a tap and an objective, with a copy in the teacher. One file per kind of output.

Names in `__all__` are public.
"""

from dovetail.heads.aggregate import SelfPatchHeadSpec, SelfPatchOutput
from dovetail.heads.base import HeadSpec, Kind, TeacherAware, mlp
from dovetail.heads.dense import DenseHeadSpec, DenseOutput, PixelHeadSpec, PixelOutput
from dovetail.heads.prototypes import PooledPrototypeHeadSpec, PrototypeHeadSpec
from dovetail.heads.raw import RawHeadSpec
from dovetail.heads.segments import SegmentHeadSpec
from dovetail.heads.slots import SlotHeadSpec, SlotOutput
from dovetail.heads.vector import VectorHeadSpec

__all__ = [
    "DenseHeadSpec",
    "DenseOutput",
    "HeadSpec",
    "Kind",
    "PixelHeadSpec",
    "PixelOutput",
    "PooledPrototypeHeadSpec",
    "PrototypeHeadSpec",
    "RawHeadSpec",
    "SegmentHeadSpec",
    "SelfPatchHeadSpec",
    "SelfPatchOutput",
    "SlotHeadSpec",
    "SlotOutput",
    "TeacherAware",
    "VectorHeadSpec",
    "mlp",
]
