"""AP is COCO's: perfect detections score 1, anything else what pycocotools counts."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dovetail.downstream.detect.average_precision import NAMES, average_precision, ground_truth
from dovetail.downstream.labels.coco import CocoSet
from dovetail.downstream.labels.coco_object import run_length_of
from tests.downstream.coco_files import write_coco


@pytest.fixture
def data(tmp_path: Path) -> CocoSet:
    return CocoSet.open(write_coco(tmp_path) / "annotations" / "instances_val2017.json")


def perfect(data: CocoSet) -> list[dict[str, Any]]:
    """Return every object that counts as a detection."""
    return [
        {
            "image_id": image.id,
            "category_id": data.ids[one.label],
            "bbox": list(one.box),
            "score": 0.9 - 0.01 * one.id,
            "segmentation": one.run_length(image.height, image.width),
        }
        for image in data.images
        for one in image.objects
        if one.has_area and not one.crowd
    ]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_perfect_detections_score_one(kind: Literal["bbox", "segm"], data: CocoSet) -> None:
    objects = tuple(tuple(one for one in image.objects if one.has_area or kind == "segm") for image in data.images)
    images = tuple(
        type(image)(image.id, image.path, image.width, image.height, kept)
        for image, kept in zip(data.images, objects, strict=True)
    )
    scores = average_precision(CocoSet(data.path, images, data.names, data.ids), perfect(data), kind)
    assert scores["AP"] == scores["AP50"] == scores["APs"] == pytest.approx(1.0)
    assert "APl" not in scores


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_counts_as_pycocotools(kind: Literal["bbox", "segm"], data: CocoSet) -> None:
    rng = np.random.default_rng(0)
    found = perfect(data)
    for _ in range(40):  # wrong places, wrong classes, duplicates, some in the crowd
        image = data.images[int(rng.integers(3))]
        left, top = (float(value) for value in rng.integers(0, 30, 2))
        width, height = (float(value) for value in rng.integers(3, 10, 2))
        corners = [left, top, left + width, top, left + width, top + height, left, top + height]
        one = type(data.images[0].objects[0])(0, 0, (left, top, width, height), [corners], 1.0, False)
        found.append(
            {
                "image_id": image.id,
                "category_id": int(rng.choice(data.ids)),
                "bbox": [left, top, width, height],
                "score": float(rng.random()),
                "segmentation": one.run_length(40, 40),
            }
        )
    ours = average_precision(data, found, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = ground_truth(data)
        if kind == "segm":
            known.dataset["annotations"] = [one for one in known.dataset["annotations"] if one["segmentation"]]
        known.createIndex()
        dropped = {"bbox"} if kind == "segm" else set()  # with a box, pycocotools takes its area for the mask's
        theirs = COCOeval(
            known, known.loadRes([{k: v for k, v in one.items() if k not in dropped} for one in found]), kind
        )
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    expected = {name: value for name, value in zip(NAMES, theirs.stats, strict=False) if value >= 0}
    assert ours == pytest.approx(expected, abs=1e-9)
    assert 0 < ours["AP"] < 1


def test_masks_are_small_or_large_by_their_own_area(data: CocoSet) -> None:
    """A thin mask across the image, found first, is a small wrong one, though its box is beyond 32 x 32."""
    one_image = data.subset([2])
    (right,) = perfect(one_image)
    thin = run_length_of(np.eye(40))
    wrong = right | {"bbox": [0.0, 0.0, 40.0, 40.0], "score": 0.99, "segmentation": thin}
    assert average_precision(one_image, [wrong, right], "segm")["APs"] == pytest.approx(0.5)
    assert average_precision(one_image, [wrong, right], "bbox")["APs"] == pytest.approx(1.0)


@pytest.mark.parametrize("nothing", [[[]], [[8, 8, 14, 14]]], ids=["empty", "two points"])
def test_objects_whose_polygons_hold_nothing_have_no_mask_to_find(nothing: list[Any], data: CocoSet) -> None:
    content = json.loads(data.path.read_text())
    content["annotations"][1]["segmentation"] = nothing
    data.path.write_text(json.dumps(content))
    changed = CocoSet.open(data.path)
    found = [one for one in perfect(changed) if one["segmentation"] is not None]
    assert len(found) == len(perfect(changed)) - 1
    assert average_precision(changed, found, "segm")["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("number", [lambda index: index, lambda index: 7], ids=["from 0", "all alike"])
def test_the_numbers_of_objects_do_not_matter(number: Callable[[int], int], data: CocoSet) -> None:
    objects = [[one for one in image.objects if one.has_area] for image in data.images]
    places = iter(range(99))
    renumbered = [tuple(replace(one, id=number(next(places))) for one in some) for some in objects]
    images = tuple(replace(image, objects=some) for image, some in zip(data.images, renumbered, strict=True))
    scores = average_precision(replace(data, images=images), perfect(data), "bbox")
    assert scores["AP"] == scores["AP50"] == pytest.approx(1.0)


def test_nothing_found_scores_zero(data: CocoSet) -> None:
    assert set(average_precision(data, [], "bbox")) == set(average_precision(data, perfect(data), "bbox"))
    assert average_precision(data, [], "bbox")["AP"] == 0
    assert average_precision(data.subset([1]), [], "bbox") == {}
