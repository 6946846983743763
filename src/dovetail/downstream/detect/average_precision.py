"""COCO's average precision for boxes and masks, counted by faster-coco-eval as pycocotools counts.

AP is the mean over IoU thresholds 0.50, 0.55, … 0.95; AP50 and AP75 are those at one threshold; APs, APm, APl count
objects of area below 32 x 32, below 96 x 96, and above; an object's area is what the file says, a detection's that of
its box, or of its mask where masks are counted. Crowds count neither way; at most 100 detections an image.
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
    """Return a set as COCO's dictionary, boxes and areas filled in.

    Objects are numbered anew from 1: the counting takes a match with number 0 for none, and needs each number once.
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
    """Return the scores of detections by name; scores of sizes that no object has are left out.

    Args:
        data: What is there.
        detections: COCO's result dictionaries: image_id, category_id, score, bbox [left, top, width, height] in pixels,
            and, for masks, segmentation as compressed run-lengths.
        kind: Boxes or masks.
    """
    truth = ground_truth(data)
    found = [dict(one) for one in detections]
    if kind == "segm":
        # What has no mask cannot be found, and of detections with a box the box's area would be counted.
        truth["annotations"] = [one for one in truth["annotations"] if one["segmentation"]]
        found = [{key: value for key, value in one.items() if key != "bbox"} for one in found]
    counted = [one for one in truth["annotations"] if not one["iscrowd"]]
    if not counted:
        return {}
    if not found:  # which the counting does not take
        sizes = [name for name, (low, high) in SIZES.items() if any(low <= one["area"] <= high for one in counted)]
        return dict.fromkeys([*NAMES[:3], *sizes], 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(truth)
        evaluation = COCOeval_faster(known, known.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(NAMES, evaluation.stats, strict=False) if value >= 0}
