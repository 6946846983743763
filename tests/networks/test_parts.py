"""Where parts are in the modules of known libraries."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import timm
import torchvision
from torch import nn

from dovetail.networks.build import build_network
from dovetail.networks.parts import Parts, local_name, locate_parts, untrained_names


@pytest.mark.parametrize(
    "name",
    ["timm/resnet18", "timm/resnet18+fcn", "smp/unet/resnet18", "smp/fpn/tu-resnet18", "timm/vit_tiny_patch16_224+fpn"],
)
def test_located_parts_agree_with_the_network(name: str) -> None:
    network = build_network(name, image_size=64)
    parts = locate_parts(network.model)
    assert parts is not None
    assert (parts.encoder_prefix, parts.decoder_prefixes) == (network.encoder_prefix, network.decoder_prefixes)
    assert {parts.split(key)[0] for key in network.model.state_dict()} >= {"encoder"}


def test_heads_are_neither_encoder_nor_decoder() -> None:
    segmenter = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)
    parts = locate_parts(segmenter)
    assert parts is not None
    assert parts.decoder_root == "classifier."
    assert parts.split("classifier.0.convs.0.0.weight") == ("decoder", "0.convs.0.0.weight")
    assert parts.split("classifier.4.weight") == ("head", "classifier.4.weight")
    assert parts.split("backbone.0.0.weight") == ("encoder", "0.0.weight")
    unet = locate_parts(smp.Unet("resnet18", encoder_weights=None))
    assert unet is not None
    assert unet.split("segmentation_head.0.bias")[0] == "head"
    resnet = locate_parts(timm.create_model("resnet18"))
    assert resnet is not None
    assert resnet.split("fc.weight")[0] == "head"


def test_own_modules_are_unknown() -> None:
    assert locate_parts(nn.Sequential(nn.Conv2d(3, 4, 1))) is None


def test_the_root_of_several_prefixes() -> None:
    assert Parts("a.", ("neck.one.", "neck.other.")).decoder_root == "neck."
    assert Parts("a.", ("neck.", "head.")).decoder_root == ""
    assert Parts("a.", ("neck.",)).decoder_root == "neck."


def test_names_of_feature_extractors() -> None:
    assert local_name("stages_0.blocks.1.conv.weight") == "stages.0.blocks.1.conv.weight"
    assert local_name("layers_3.downsample.norm.bias") == "layers.3.downsample.norm.bias"
    assert local_name("layer1.0.bn2.weight") == "layer1.0.bn2.weight"


def test_untrained_names_follow_modules() -> None:
    names = ["e.conv.weight", "e.bn.weight", "e.bn.bias", "e.bn.running_mean", "e.late.weight", "e.late.bias", "h.w"]
    names += ["h.bn.running_mean", "skip.w", "skip.bn.running_mean"]
    parameters = [name for name in names if "running" not in name]

    def untrained(*unreached: str) -> list[str]:
        return untrained_names(names, Parts("e."), parameters=parameters, unreached=unreached)

    head = ["h.w", "h.bn.running_mean"]
    assert untrained() == []
    assert untrained("h.w") == head
    assert untrained("h.w", "e.bn.weight", "e.bn.bias") == [*names[1:4], *head]
    assert untrained("h.w", "e.late.bias") == ["e.late.bias", *head]
