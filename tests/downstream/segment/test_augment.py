"""Images and masks stay together through augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dovetail.downstream.labels.labelled import Labelled
from dovetail.downstream.segment.augment import Augmentation, augmented, brought_within, distorted, scaled

IGNORED = 255


def item(height: int = 12, width: int = 10) -> Labelled:
    """Return an image whose values are its mask's labels."""
    mask = torch.arange(height * width).reshape(height, width) % 200
    return Labelled(mask.to(torch.uint8).expand(3, -1, -1), mask)


def test_halves_are_rounded_up() -> None:
    assert scaled((1024, 2048), 2049 / 2048) == [1025, 2049]  # Cityscapes within 2049 x 1025
    assert scaled((3, 1), 0.1) == [1, 1]


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


def test_images_are_brought_within_two_sides() -> None:
    images = torch.zeros(2, 3, 30, 60, dtype=torch.uint8)
    assert brought_within(images, (1000, 20)).shape == (2, 3, 20, 40)
    assert brought_within(images, (30, 20)).shape == (2, 3, 15, 30)
    assert brought_within(images, None) is images
    plan = Augmentation(within_px=(1000, 24), flip_p=0.0)
    image, mask = augmented(item(12, 16), plan, IGNORED, np.random.default_rng(0))
    assert image.shape == (3, 24, 32)
    assert mask.shape == (24, 32)
    assert set(mask.unique().tolist()) <= set(item(12, 16).mask.unique().tolist())


def test_crops_of_one_class_are_drawn_anew() -> None:
    mask = torch.zeros(40, 40, dtype=torch.int64)
    mask[:, 34:] = 1
    source = Labelled(mask.to(torch.uint8).expand(3, -1, -1), mask)
    shares = {}
    for limit in (1.0, 0.75):
        plan = Augmentation(crop_px=(8, 8), flip_p=0.0, most_of_one_class=limit)
        crops = [augmented(source, plan, IGNORED, np.random.default_rng(seed)).mask for seed in range(60)]
        shares[limit] = sum(crop.float().mean().item() >= 0.25 for crop in crops) / 60
    assert shares[0.75] > 2 * shares[1.0]
    one = Augmentation(crop_px=(8, 8), most_of_one_class=0.75)  # no crop will do: the last one is taken
    assert augmented(item(8, 8), one, IGNORED, np.random.default_rng(0)).mask.shape == (8, 8)


def test_distorted_colours() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 12, 12), np.uint8))
    found = [distorted(image, np.random.default_rng(seed)) for seed in range(64)]
    assert all(torch.equal(one, distorted(image, np.random.default_rng(seed))) for seed, one in enumerate(found))
    assert {(one.shape, one.dtype) for one in found} == {(image.shape, torch.uint8)}
    # Brightness, contrast, saturation and hue all stay away in one of 16.
    assert 1 <= sum(torch.equal(one, image) for one in found) <= 12
    grey = image[:1].expand(3, -1, -1)
    assert all(
        int((one.max(0).values - one.min(0).values).max()) <= 1
        for one in (distorted(grey, np.random.default_rng(s)) for s in range(20))
    )
    means = [one.float().mean().item() - image.float().mean().item() for one in found]
    assert min(means) < -10
    assert max(means) > 10
