"""A detector that looks at no pixel: what it says, and what that gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.scenes.boxes import mean_boxes
from PIL import Image

CATEGORIES = [{"id": 3, "name": "left"}, {"id": 7, "name": "right"}]


def write_set(folder: Path, boxes: dict[str, list[tuple[int, list[float]]]]) -> None:
    """Write images of 64 x 32 pixels with one object each: its category, and its box, filled."""
    for part, objects in boxes.items():
        images, annotations = [], []
        for number, (category, box) in enumerate(objects, start=1):
            left, top, width, height = box
            name = f"{part}{number}.png"
            Image.fromarray(np.zeros((32, 64), dtype=np.uint8)).save(folder / name)
            images.append({"id": number, "file_name": name, "width": 64, "height": 32})
            outline = [left, top, left + width, top, left + width, top + height, left, top + height]
            one: dict[str, Any] = {"id": number, "image_id": number, "category_id": category, "bbox": box}
            annotations.append({**one, "area": width * height, "iscrowd": 0, "segmentation": [outline]})
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (folder / f"instances_{part}.json").write_text(json.dumps(content))


def test_what_is_always_in_one_place_is_found_without_looking(tmp_path: Path) -> None:
    """Two training boxes of "left" have the test box as their mean; "right" is elsewhere in every test image."""
    train = [(3, [0.0, 0.0, 16.0, 16.0]), (3, [8.0, 8.0, 16.0, 16.0]), (7, [32.0, 0.0, 16.0, 16.0])]
    test = [(3, [4.0, 4.0, 16.0, 16.0]), (3, [4.0, 4.0, 16.0, 16.0]), (7, [48.0, 16.0, 16.0, 16.0])]
    write_set(tmp_path, {"train": train, "val": test})
    scores, images = mean_boxes(tmp_path, 1.0, 0)
    assert images == 3
    # "left" is said of all three images with one certainty: both are found, the third costs precision at no recall.
    left = scores["box AP"]
    assert scores["box AP50"] == scores["box AP75"] == left == pytest.approx(scores["mask AP"])
    assert left == pytest.approx(0.5)  # "right" has 0, and counts for half


def test_a_share_of_the_labels_says_what_it_saw(tmp_path: Path) -> None:
    """With the images of one class alone, the other is never said."""
    same = [(3, [4.0, 4.0, 16.0, 16.0])]
    write_set(tmp_path, {"train": same, "val": [*same, (7, [32.0, 0.0, 16.0, 16.0])]})
    scores, images = mean_boxes(tmp_path, 1.0, 0)
    assert (images, scores["box AP50"] > 0.2) == (1, True)
    write_set(tmp_path, {"train": [(7, [32.0, 0.0, 16.0, 16.0])], "val": [*same, *same]})
    assert mean_boxes(tmp_path, 1.0, 0)[0]["box AP"] == 0
