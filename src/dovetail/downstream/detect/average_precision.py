"""COCO's average precision for boxes and masks, computed by faster-coco-eval with the results of pycocotools.

AP is the mean over IoU thresholds 0.50, 0.55, … 0.95; AP50 and AP75 use a single threshold. APs, APm and APl use
objects with an area below 32 x 32, below 96 x 96, and above. The area of an object is that in the file; the area of a
detection is that of its box, or of its mask for mask AP. Crowds are ignored. At most 100 detections per image are used.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal

from faster_coco_eval import COCO, COCOeval_faster

from dovetail.downstream.labels.coco import CocoSet

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SIZES = {"APs": (0, 32**2), "APm": (32**2, 96**2), "APl": (96**2, 1e10)}


def ground_truth(data: CocoSet) -> dict[str, Any]:
    """Return a dataset as a COCO dictionary with all boxes and areas.

    Objects are renumbered from 1, because the evaluation needs unique ids and treats a match with id 0 as no match.
    """
    objects = [(image, one) for image in data.images for one in image.objects]
    annotations = [
        {
            "id": number,
            "image_id": image.id,
            "category_id": data.ids[one.label],
            "bbox": list(one.box),
            "area": one.area,
            "iscrowd": int(one.crowd),
            "segmentation": one.segmentation if one.segmentation is not None else [],
        }
        for number, (image, one) in enumerate(objects, 1)
    ]
    images = [
        {"id": image.id, "file_name": image.path.name, "width": image.width, "height": image.height}
        for image in data.images
    ]
    categories = [{"id": one, "name": name} for one, name in zip(data.ids, data.names, strict=True)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def average_precision(
    data: CocoSet, detections: Sequence[dict[str, Any]], kind: Literal["bbox", "segm"]
) -> dict[str, float]:
    """Return the scores of detections by name. Scores for object sizes that do not occur are omitted.

    Args:
        data: Ground truth.
        detections: COCO result dictionaries with image_id, category_id, score, bbox [left, top, width, height] in
            pixels and, for masks, segmentation as compressed run-lengths.
        kind: Boxes or masks.
    """
    truth = ground_truth(data)
    found = [dict(one) for one in detections]
    if kind == "segm":
        # Objects without a mask cannot be detected, and the area of a detection with a box would be that of the box.
        truth["annotations"] = [one for one in truth["annotations"] if one["segmentation"]]
        found = [{key: value for key, value in one.items() if key != "bbox"} for one in found]
    counted = [one for one in truth["annotations"] if not one["iscrowd"]]
    if not counted:
        return {}
    if not found:  # the evaluation does not support this
        sizes = [name for name, (low, high) in SIZES.items() if any(low <= one["area"] <= high for one in counted)]
        return dict.fromkeys([*NAMES[:3], *sizes], 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(truth)
        evaluation = COCOeval_faster(known, known.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(NAMES, evaluation.stats, strict=False) if value >= 0}
