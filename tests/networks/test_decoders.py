"""The one forward of feature pyramids, and the models with decoders of our own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FeaturePyramidNetwork

from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.networks.construct import construct
from dovetail.networks.decoders import FCNDecoder, encoder_fcn, encoder_fpn, fpn_forward, intermediates


def features() -> list[Tensor]:
    return [torch.randn(2, width, side, side) for width, side in ((4, 12), (5, 6), (6, 3))]


@pytest.mark.parametrize("levels", [[0], [1], [2], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_levels_equal_torchvisions(levels: list[int], norm: type[nn.Module] | None) -> None:
    fpn = FeaturePyramidNetwork([4, 5, 6], 8, norm_layer=norm)
    maps = features()
    expected = list(fpn({str(index): value for index, value in enumerate(maps)}).values())
    outputs = fpn_forward(fpn, maps, levels=levels, drop=lambda laterals: laterals)
    assert set(outputs) == set(levels)
    for level in levels:
        torch.testing.assert_close(outputs[level], expected[level])


def test_laterals_are_dropped_after_their_convolution_and_before_the_sum() -> None:
    fpn = FeaturePyramidNetwork([4, 5, 6], 8)
    maps = features()
    seen: list[list[tuple[int, ...]]] = []

    def drop(laterals: list[Tensor]) -> list[Tensor]:
        seen.append([tuple(lateral.shape) for lateral in laterals])
        return [torch.zeros_like(lateral) for lateral in laterals[:-1]] + laterals[-1:]

    outputs = fpn_forward(fpn, maps, levels=[1], drop=drop)
    assert seen == [[(2, 8, 6, 6), (2, 8, 3, 3)]]
    top = nn.functional.interpolate(fpn.inner_blocks[2](maps[2]), size=(6, 6), mode="nearest")
    torch.testing.assert_close(outputs[1], fpn.layer_blocks[1](top))


def test_the_pyramid_is_a_backbone_for_torchvisions_detectors() -> None:
    backbone = encoder_fpn("resnet18", channels=16)
    detector = FasterRCNN(backbone, num_classes=2, min_size=64, max_size=64).eval()
    with torch.no_grad():
        (answer,) = detector([torch.rand(3, 64, 64)])
    assert answer["boxes"].shape[1] == 4
    assert list(backbone(torch.rand(2, 3, 64, 64))) == ["0", "1", "2", "3", "pool"]


def test_norm_replaces_bias() -> None:
    assert not [name for name in encoder_fpn("resnet18").decoder.state_dict() if name.endswith(".0.bias")]
    plain = encoder_fpn("resnet18", norm=False).decoder.state_dict()
    assert {name.split(".")[2] for name in plain} == {"0"}


def test_fcn_names_and_size() -> None:
    decoder = FCNDecoder(8, 6, dilation=6)
    assert [name for name, _ in decoder.named_parameters()] == [
        f"convs.{index}.{name}" for index in (0, 1) for name in ("conv.weight", "bn.weight", "bn.bias")
    ]
    assert decoder(torch.randn(2, 8, 7, 7)).shape == (2, 6, 7, 7)
    assert encoder_fcn("resnet18", channels=6)(torch.rand(2, 3, 64, 64)).shape == (2, 6, 2, 2)


def test_a_pyramid_with_normed_taps_normalises_each_map_over_its_channels() -> None:
    plain, normed = (encoder_fpn("test_convnext", channels=16, tap_norm=tap_norm) for tap_norm in (False, True))
    added = set(normed.state_dict()) - set(plain.state_dict())
    assert added == {f"decoder.tap_norms.{level}.{name}" for level in range(4) for name in ("weight", "bias")}
    normed.load_state_dict(plain.state_dict(), strict=False)
    plain.eval()
    normed.eval()
    pixels = torch.randn(2, 3, 64, 64)
    maps = intermediates(plain.encoder, pixels, plain.indices)
    centred = [value - value.mean(1, keepdim=True) for value in maps]
    scaled = [value / (value.square().mean(1, keepdim=True) + 1e-6).sqrt() for value in centred]
    expected = plain.decoder({str(level): value for level, value in enumerate(scaled)})
    found = normed(pixels)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    levels = fpn_forward(normed.decoder, maps, levels=[1, 2], drop=lambda laterals: laterals)
    torch.testing.assert_close(levels[1], expected["1"])
    torch.testing.assert_close(levels[2], expected["2"])


def test_normed_taps_are_an_option_of_the_models_name() -> None:
    network = build_network("timm/test_convnext+fpn(channels=16, tap_norm=True)", image_size=64)
    assert "tap_norm=True" in network.constructor
    assert "tap_norm" not in build_network("timm/test_convnext+fpn", image_size=64).constructor
    assert construct(network.constructor).state_dict().keys() == network.model.state_dict().keys()
    with pytest.raises(DovetailError, match="True or False"):
        build_network("timm/test_convnext+fpn(tap_norm=1)", image_size=64)
