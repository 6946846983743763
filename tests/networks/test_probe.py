"""Image sizes and batches that a network cannot train on."""

from __future__ import annotations

import pytest
import torch

from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.networks.probe import check_image_size
from dovetail.sizes import Size


def test_sizes_off_the_grid_name_the_nearest() -> None:
    network = build_network("smp/unet/resnet18", image_size=64)
    check_image_size(network, 96)
    for size, nearest in ((100, 96), (20, 32), (81, 96)):
        with pytest.raises(DovetailError, match=f"multiple of 32, such as {nearest}"):
            check_image_size(network, size)


@pytest.mark.parametrize(("size", "nearest"), [(65, "64"), ((64, 90), "64x96"), (10, "32")])
def test_a_model_that_cannot_be_built_for_a_size_names_the_nearest(size: Size, nearest: str) -> None:
    with pytest.raises(DovetailError, match=f" px; choose multiples of 32, such as {nearest}."):
        build_network("smp/fpn/resnet18", image_size=size)


def test_a_decoder_that_pools_too_far() -> None:
    network = build_network("smp/pan/resnet18", image_size=128)
    check_image_size(network, 128)
    with pytest.raises(
        DovetailError, match=r"does not support images of 64 px .*; use the size that it was built for, 128"
    ):
        check_image_size(network, 64)


def test_batch_norm_on_single_cells() -> None:
    network = build_network("smp/deeplabv3/resnet18", image_size=64)
    check_image_size(network, 64, batch_size=2)
    with pytest.raises(DovetailError, match=r"1 image\(s\) of .* px; use larger batches"):
        check_image_size(network, 64, batch_size=1)
    check_image_size(network, 64, taps=["c3"], batch_size=1)


def test_nothing_is_changed() -> None:
    network = build_network("timm/resnet18", image_size=64).eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    numbers = torch.get_rng_state()
    check_image_size(network, 64)
    assert torch.equal(numbers, torch.get_rng_state())
    assert not any(part.training for part in network.modules())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_vits_are_checked_without_their_queries() -> None:
    check_image_size(build_network("timm/vit_tiny_patch16_224", image_size=32), 32)
