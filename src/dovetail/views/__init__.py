"""Views of images: geometry, cropping, photometrics, masks.

Names in `__all__` are public.
"""

from dovetail.views.batch import ViewBatch, augment, collate, to_views
from dovetail.views.plan import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MaskSpec,
    Photometric,
    PointSpec,
    QuerySpec,
    SegmentSpec,
    ViewPlan,
    ViewSpec,
)
from dovetail.views.random import Purpose, stream
from dovetail.views.sampling import draw_views
from dovetail.views.transform import ViewTransform
from dovetail.views.view import Role, View, align, overlap_box, overlaps

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MaskSpec",
    "Photometric",
    "PointSpec",
    "Purpose",
    "QuerySpec",
    "Role",
    "SegmentSpec",
    "View",
    "ViewBatch",
    "ViewPlan",
    "ViewSpec",
    "ViewTransform",
    "align",
    "augment",
    "collate",
    "draw_views",
    "overlap_box",
    "overlaps",
    "stream",
    "to_views",
]
