"""Layers are counted from the pixels on; every family's encoder decays, and nothing after it."""

from __future__ import annotations

import pytest
import torch

from dovetail.downstream.detect.loop import DetectOptions
from dovetail.downstream.detect.loop import build_optimiser as detection_optimiser
from dovetail.downstream.detect.model import DetectorSpec, build_detector
from dovetail.downstream.segment.model import PARTS, build_segmenter
from dovetail.downstream.segment.options import SegmentOptions, build_optimiser
from dovetail.downstream.start import source_of
from dovetail.networks.layer_decay import layer_depths, layer_scales


def depths(*names: str) -> list[int]:
    found = layer_depths([*(f"net.{name}" for name in names), "head.weight"], encoder=("net.",))
    return list(found.values())


def test_layers_are_counted_from_the_stem_to_the_rest() -> None:
    vit = ("cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.11.mlp.fc1.bias", "norm.weight")
    assert depths(*vit) == [0, 0, 1, 2, 2, 3]
    assert depths("conv1.weight", "layer1.0.conv1.weight", "layer4.1.bn2.bias") == [0, 1, 2, 3]
    assert depths("stages_0.blocks.1.x", "stages_3.blocks.0.x") == [1, 2, 3]
    assert layer_scales(["net.blocks.0.x", "head.x", "neck.blocks.0.x"], encoder=("net.",), decay=0.5) == {
        "net.blocks.0.x": 0.5,
        "head.x": 1.0,
        "neck.blocks.0.x": 1.0,
    }


def rates(optimiser: torch.optim.Optimizer) -> dict[int, float]:
    return {id(value): group["lr"] for group in optimiser.param_groups for value in group["params"]}


@pytest.mark.parametrize(
    ("model", "decoder", "blocks"),
    [
        ("timm/test_vit", "upernet", "body.encoder.blocks."),
        ("timm/test_vit+fpn", "auto", "body.encoder.blocks."),
        ("smp/unet/resnet18", "auto", "body.encoder.layer"),
    ],
)
def test_segmenters_decay_in_the_encoder_only(model: str, decoder: str, blocks: str) -> None:
    made, _ = build_segmenter(source_of(None, model), classes=2, decoder=decoder)  # type: ignore[arg-type]
    options = SegmentOptions(classes=2, lr=1.0, layer_decay=0.5, parts=PARTS, lr_scale={"encoder": 0.5})
    found = rates(build_optimiser(made, options))
    by_name = {name: found[id(value)] for name, value in made.named_parameters()}
    inside = [rate for name, rate in by_name.items() if name.startswith(blocks)]
    assert max(inside) == 0.25  # the last layer: one below the decoder, and half of it
    assert inside == sorted(inside)
    assert {rate for name, rate in by_name.items() if not name.startswith("body.encoder.")} == {1.0}


@pytest.mark.parametrize(
    ("model", "head", "encoder"),
    [
        ("timm/test_vit", "rcnn", "backbone.encoder."),
        ("timm/test_resnet", "retinanet", "backbone.body.encoder."),
        ("torchvision/fasterrcnn_resnet50_fpn", "rcnn", "backbone.body."),
    ],
)
def test_detectors_decay_in_the_encoder_only(model: str, head: str, encoder: str) -> None:
    spec = DetectorSpec("boxes", head, 2, (64,), 100)  # type: ignore[arg-type]
    with torch.device("meta"):
        made, _ = build_detector(source_of(None, model), spec)
    optimiser = detection_optimiser(made, DetectOptions(steps=1, lr=1.0, layer_decay=0.5))
    found = rates(optimiser)
    by_name = {name: found[id(value)] for name, value in made.named_parameters()}
    inside = [rate for name, rate in by_name.items() if name.startswith(encoder)]
    assert max(inside) == 0.5
    assert len(set(inside)) > 1
    assert {rate for name, rate in by_name.items() if not name.startswith(encoder)} == {1.0}
    assert all(group["peak_lr"] == group["lr"] for group in optimiser.param_groups)
