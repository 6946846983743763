"""Images and masks stay together through augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dovetail.transfer.augment import Augmentation, augmented
from dovetail.transfer.labelled import Labelled

IGNORED = 255


def item(height: int = 12, width: int = 10) -> Labelled:
    """Return an image whose values are its mask's labels."""
    mask = torch.arange(height * width).reshape(height, width) % 200
    return Labelled(mask.to(torch.uint8).expand(3, -1, -1), mask)


@pytest.mark.parametrize(
    "plan",
    [
        Augmentation(flip_p=0.5, flip_vertical_p=0.5),
        Augmentation(crop_px=(8, 6)),
        Augmentation(crop_px=(16, 8), flip_vertical_p=1.0),
    ],
)
def test_mask_moves_with_the_image(plan: Augmentation) -> None:
    outcomes = set()
    for seed in range(8):
        image, mask = augmented(item(), plan, IGNORED, np.random.default_rng(seed))
        counts = mask != IGNORED
        assert torch.equal(image[0].long()[counts], mask[counts])
        if plan.crop_px is not None:
            assert mask.shape == plan.crop_px
            assert image.shape == (3, *plan.crop_px)
        outcomes.add(tuple(mask.flatten().tolist()))
    assert len(outcomes) > 1


def test_padding_does_not_count() -> None:
    image, mask = augmented(item(4, 4), Augmentation(crop_px=(6, 5), flip_p=0.0), IGNORED, np.random.default_rng(0))
    assert int((mask == IGNORED).sum()) == 30 - 16
    assert image[:, mask == IGNORED].max() == 0


def test_resize_keeps_labels_and_aligns() -> None:
    mask = torch.zeros(16, 16, dtype=torch.int64)
    mask[:, 8:] = 3
    source = Labelled((mask * 80).to(torch.uint8).expand(3, -1, -1), mask)
    plan = Augmentation(scale=(2.0, 2.0), flip_p=0.0)
    image, scaled = augmented(source, plan, IGNORED, np.random.default_rng(0))
    assert scaled.shape == (32, 32)
    assert scaled.unique().tolist() == [0, 3]
    assert torch.equal(image[0] > 120, scaled == 3)


def test_jitter_changes_values_within_range_and_nothing_else() -> None:
    plan = Augmentation(flip_p=0.0, jitter=0.3)
    image, mask = augmented(item(), plan, IGNORED, np.random.default_rng(1))
    assert torch.equal(mask, item().mask)
    assert not torch.equal(image, item().image)
    assert image.dtype == torch.uint8
