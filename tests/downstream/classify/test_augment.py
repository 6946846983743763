"""Augmentation by timm is a pure function of its key; targets follow the pixels."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from dovetail.downstream.classify.augment import borrowed_random, erased, mixed, randaugmented

TRUTH = torch.tensor([0, 2])


def two_images(side: int = 8) -> torch.Tensor:
    """Return an image of zeros and one of ones."""
    return torch.arange(2.0).view(2, 1, 1, 1).repeat(1, 3, side, side)


def test_smoothing_spreads_over_all_classes() -> None:
    pixels = two_images()
    images, targets = mixed(pixels, TRUTH, classes=3, mixup=0.0, cutmix=0.0, smoothing=0.3, key=(0,))
    assert images is pixels
    assert torch.allclose(targets, torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_the_share_in_the_pixels_is_that_in_the_targets(mixup: float, cutmix: float) -> None:
    plain = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    kinds = set()
    for step in range(12):
        images, targets = mixed(
            two_images(), TRUTH, classes=3, mixup=mixup, cutmix=cutmix, smoothing=0.3, key=(7, step)
        )
        share = images.mean((1, 2, 3))  # of the second image
        assert torch.allclose(targets, (1 - share)[:, None] * plain[0] + share[:, None] * plain[1], atol=1e-6)
        kinds.add("cutmix" if set(images.unique().tolist()) <= {0.0, 1.0} else "mixup")
    assert kinds == {name for name, value in (("mixup", mixup), ("cutmix", cutmix)) if value}


def test_randaugment_follows_its_key() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 24, 24), np.uint8))
    outcomes = [randaugmented(image, magnitude=9, mean=(0.5,) * 3, key=(0, step)) for step in range(6)]
    again = [randaugmented(image, magnitude=9, mean=(0.5,) * 3, key=(0, step)) for step in range(6)]
    assert all(torch.equal(one, two) for one, two in zip(outcomes, again, strict=True))
    assert len({tuple(one.flatten().tolist()) for one in outcomes}) > 2
    assert {(one.shape, one.dtype) for one in outcomes} == {(image.shape, torch.uint8)}


def test_the_hardest_randaugment_fails_on_no_image() -> None:
    image = torch.arange(3 * 16 * 16, dtype=torch.uint8).view(3, 16, 16)
    for step in range(300):  # among them posterising at the largest magnitude
        assert randaugmented(image, magnitude=10, mean=(0.5,) * 3, key=(1, step)).shape == image.shape


def test_erasing_replaces_rectangles_in_some_images() -> None:
    pixels = torch.zeros(40, 3, 16, 16)
    changed = erased(pixels.clone(), probability=0.5, key=(3,))
    assert torch.equal(changed, erased(pixels.clone(), probability=0.5, key=(3,)))
    hit = changed.flatten(1).any(1)
    assert 8 < int(hit.sum()) < 32
    share = (changed[hit] != 0).float().mean((1, 2, 3))
    assert 0.01 < float(share.min()) <= float(share.max()) < 0.4


def test_global_random_numbers_are_left_as_they_were() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    seed()
    expected = [draw(), draw()]
    seed()
    found = [draw()]
    with borrowed_random(9, with_torch=True):
        inside = draw()
    assert [*found, draw()] == expected
    with borrowed_random(9, with_torch=True):
        assert draw() == inside
