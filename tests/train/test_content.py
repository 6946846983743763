"""Shares of a map's variance: known answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dovetail.train.content import MOST_VALUES, map_content, sampled_content

BATCH, CHANNELS, SIDE = 32, 16, 8


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shares(maps: Tensor) -> tuple[float, float]:
    found = map_content(maps)
    return float(found.within), float(found.position)


@pytest.mark.parametrize("level", [0.0, 3.0, 1e6])
def test_constant_maps_have_no_share(level: float) -> None:
    assert shares(torch.full((BATCH, CHANNELS, SIDE, SIDE), level)) == (0.0, 0.0)


def test_cells_that_are_alike_within_their_image_have_no_within_image_share() -> None:
    maps = noise(BATCH, CHANNELS, 1, 1).expand(-1, -1, SIDE, SIDE)
    assert shares(maps + 5.0) == (0.0, 0.0)


def test_maps_that_are_position_alone_have_both_shares_at_one() -> None:
    maps = noise(1, CHANNELS, SIDE, SIDE).expand(BATCH, -1, -1, -1)
    assert shares(maps) == pytest.approx((1.0, 1.0), abs=1e-5)


def test_position_beside_what_the_image_is_has_the_share_of_its_variance() -> None:
    position = noise(1, CHANNELS, SIDE, SIDE)
    image = noise(BATCH, CHANNELS, 1, 1, seed=1)
    within, at_place = shares(position + image)
    variance = float(position.var(dim=(2, 3), correction=0).sum())
    assert within == pytest.approx(variance / (variance + float(image.var(dim=0).sum())), rel=1e-4)
    assert at_place == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("batch", [8, BATCH])
def test_noise_has_no_position_share_however_small_the_batch(batch: int) -> None:
    """The variance of a mean map of noise alone would be 1 / batch of the whole."""
    found = [map_content(noise(batch, CHANNELS, SIDE, SIDE, seed=seed)) for seed in range(50)]
    assert max(float(one.position) for one in found) < 0.2 / batch
    # The mean of P cells takes 1 / P of their variance with it.
    mean = sum(float(one.within) for one in found) / len(found)
    assert mean == pytest.approx(1 - 1 / SIDE**2, abs=1e-3)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_mixtures_have_the_share_they_are_mixed_with(share: float) -> None:
    position = noise(1, CHANNELS, SIDE, SIDE)
    position = position - position.mean(dim=(2, 3), keepdim=True)
    position = position / position.square().mean().sqrt()
    content = noise(BATCH, CHANNELS, SIDE, SIDE, seed=1)
    content = content - content.mean(dim=(2, 3), keepdim=True)
    content = content / content.square().mean().sqrt()
    image = 2.0 * noise(BATCH, CHANNELS, 1, 1, seed=2)
    within, at_place = shares(share**0.5 * position + (1 - share) ** 0.5 * content + image)
    assert at_place == pytest.approx(share, abs=0.02)
    assert within == pytest.approx(1 / (1 + 4), abs=0.03)


def test_position_is_the_crops_as_the_network_sees_it() -> None:
    """A ramp over the crop is position; half of it mirrored in the crop is what half of the images show."""
    ramp = torch.linspace(-1, 1, SIDE).expand(BATCH, CHANNELS, SIDE, SIDE)
    assert shares(ramp)[1] == pytest.approx(1.0, abs=1e-5)
    flipped = torch.arange(BATCH) % 2 == 0
    assert shares(torch.where(flipped[:, None, None, None], ramp.flip(3), ramp))[1] == pytest.approx(0.0, abs=1e-5)


def test_shares_do_not_depend_on_scale_or_offset() -> None:
    maps = noise(BATCH, CHANNELS, SIDE, SIDE) + noise(1, CHANNELS, SIDE, SIDE, seed=1)
    assert shares(100 * maps + 7) == pytest.approx(shares(maps), rel=1e-4)


def test_half_precision_is_read_in_float32() -> None:
    maps = noise(BATCH, CHANNELS, SIDE, SIDE) + noise(BATCH, CHANNELS, 1, 1, seed=1)
    assert shares(maps.bfloat16()) == pytest.approx(shares(maps), abs=0.01)


def test_only_maps_of_enough_images_and_cells_are_read() -> None:
    assert sampled_content(noise(8, 4, 3, 3), fewest=8) is not None
    assert sampled_content(noise(7, 4, 3, 3), fewest=8) is None
    assert sampled_content(noise(8, 4, 1, 1), fewest=8) is None
    assert sampled_content(noise(8, 9, 4), fewest=8) is None  # tokens
    assert sampled_content(noise(8, 4), fewest=8) is None


def test_of_large_maps_the_first_images_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_VALUES >= 8 * 256 * 56 * 56  # eight images of an FPN's finest map at 224 px
    monkeypatch.setattr("dovetail.train.content.MOST_VALUES", 10 * 4 * 9)
    maps = noise(20, 4, 3, 3)
    assert sampled_content(maps, fewest=8) == map_content(maps[:10])
