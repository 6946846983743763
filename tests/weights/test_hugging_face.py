"""Into and out of models of transformers, by the names of the installed version."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from dovetail.networks.build import build_network
from dovetail.weights.exported import save_exported
from dovetail.weights.matching import load_into

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
VIT = "depth=2, embed_dim=64, num_heads=2, img_size=32"
MODELS = {
    "ViT": (
        f"timm.create_model('test_vit', {VIT}, mlp_ratio=3)",
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, intermediate_size=192)),
    ),
    "DINOv2": (
        f"timm.create_model('test_vit', {VIT}, mlp_ratio=4, init_values=1.0)",
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)),
    ),
    "ResNet": (
        "timm.create_model('resnet18')",
        lambda: transformers.ResNetModel(
            transformers.ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
        ),
    ),
    "ConvNeXt": (
        "timm.create_model('convnext_tiny', depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))",
        lambda: transformers.ConvNextModel(transformers.ConvNextConfig(depths=[1] * 4, hidden_sizes=[8, 8, 16, 16])),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_run_into_a_model_of_transformers_and_back(tmp_path: Path, name: str) -> None:
    call, make = MODELS[name]
    network = build_network(call, image_size=32)
    with torch.no_grad():
        for value in network.model.parameters():
            value.uniform_(-1, 1)
    save_exported(network, tmp_path / "run", method="dino", extra={})
    model = make()
    report = load_into(model, tmp_path / "run", part="encoder", strict=False)
    assert not report.missing + report.mismatched
    assert len(report.matched) > 20
    model.save_pretrained(tmp_path / "hub")
    again = build_network(call, image_size=32)
    for value in again.model.state_dict().values():
        value.zero_()
    back = load_into(again.model, tmp_path / "hub" / "model.safetensors", strict=False)
    assert not back.missing + back.mismatched
    state, first = again.model.state_dict(), network.model.state_dict()
    for key in back.matched:
        torch.testing.assert_close(state[key], first[key])
    assert len(back.matched) > 20


def test_the_timm_backbone_within_detr(tmp_path: Path) -> None:
    """Below a prefix of its own, `model.backbone.conv_encoder.model.` in transformers."""
    save_exported(build_network("timm/resnet18", image_size=64), tmp_path, method="moco-v2", extra={})
    inner = timm.create_model("resnet18", features_only=True)
    detr = nn.Module()
    detr.model = nn.Module()
    detr.model.backbone = nn.ModuleDict({"conv_encoder": nn.ModuleDict({"model": inner})})
    detr.model.encoder = nn.Linear(3, 3)
    report = load_into(detr, tmp_path, part="encoder")
    assert len(report.matched) == 120
    assert all(one.startswith("model.backbone.conv_encoder.model.") for one in report.matched)
