"""Views of one image as a transform are those of a run."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dovetail.views.transform
from dovetail.data.loader import ViewDataset
from dovetail.data.open import open_source
from dovetail.errors import DataError
from dovetail.views import QuerySpec, SegmentSpec, ViewPlan, ViewSpec, ViewTransform
from tests.data.photos import folder_of

PLAN = ViewPlan((ViewSpec(32), ViewSpec(32), ViewSpec(16, role="local")), queries=QuerySpec(count=2, size_px=16))


def test_the_example_runs() -> None:
    results = doctest.testmod(dovetail.views.transform)
    assert results.failed == 0
    assert results.attempted > 4


def test_the_views_of_a_run(tmp_path: Path) -> None:
    folder_of(tmp_path, 3)
    source = open_source(tmp_path)
    dataset = ViewDataset(source, PLAN, seed=5)
    for index in range(3):
        for image in (Image.open(source.name(index)), source.open(index, 3).decode(1)):
            mine, theirs = ViewTransform(PLAN, seed=5)(image, epoch=2, index=index), dataset[2, index]
            for one, other in zip(mine.crops, theirs.crops, strict=True):
                assert torch.equal(one, other)
            for name in ("box", "flipped", "photometrics", "source_px", "queries", "query_box"):
                assert torch.equal(getattr(mine, name), getattr(theirs, name))


def test_without_an_index_views_are_random_and_repeatable() -> None:
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    torch.manual_seed(0)
    one, two = ViewTransform(PLAN)(image), ViewTransform(PLAN)(image)
    assert not torch.equal(one.box, two.box)
    torch.manual_seed(0)
    assert torch.equal(ViewTransform(PLAN)(image).box, one.box)


def test_segments_and_what_is_refused() -> None:
    image = torch.zeros(3, 40, 50, dtype=torch.uint8)
    plan = ViewPlan((ViewSpec(32), ViewSpec(32)), segments=SegmentSpec(4))
    assert ViewTransform(plan)(image, labels=np.ones((40, 50), np.int32)).segments[0].shape == (32, 32)
    with pytest.raises(DataError, match="pass labels"):
        ViewTransform(plan)(image)
    with pytest.raises(DataError, match=r"expects uint8 pixels .*, got float32 \[3, 40, 50\]"):
        ViewTransform(PLAN)(image.float())
    with pytest.raises(DataError, match=r"got uint8 \[40, 50\]"):
        ViewTransform(PLAN)(image[0])
