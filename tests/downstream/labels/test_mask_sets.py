"""Masks from COCO's objects: what has a box alone counts neither way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dovetail.downstream.labels.coco import CocoSet
from dovetail.downstream.labels.mask_sets import CocoMasks
from tests.downstream.coco_files import write_coco


@pytest.fixture
def data(tmp_path: Path) -> CocoSet:
    return CocoSet.open(write_coco(tmp_path) / "annotations" / "instances_val2017.json")


def unmasked(data: CocoSet, label: int) -> CocoMasks:
    """Return the first image, the masks of its objects of a category taken away."""
    image = data.images[0]
    objects = [replace(one, segmentation=None) if one.label == label else one for one in image.objects]
    return CocoMasks(replace(data, images=(replace(image, objects=tuple(objects)),)))


def test_objects_with_a_box_alone_are_ignored(data: CocoSet) -> None:
    cats, kites = (unmasked(data, label) for label in (1, 0))
    mask = cats[0].mask  # the kite's box lies in the cat, which has a mask
    assert mask.unique().tolist() == [0, 1]
    assert cats.classes_in(0) == [1]
    mask = kites[0].mask
    assert bool((mask[3:30, 3:8] == 255).all())
    assert bool((mask[2:12, 34:39] == 255).all())  # the crowd
    assert int(mask[11, 11]) == 2
    assert int(mask[35, 35]) == 0
    assert kites.classes_in(0) == [2]


def test_objects_with_a_box_alone_are_counted(data: CocoSet) -> None:
    assert (CocoMasks(data).unmasked, unmasked(data, 0).unmasked) == (0, 2)
    assert list(unmasked(data, 0).faults()) == []
