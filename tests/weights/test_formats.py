"""Exports for programs with names of their own: read back, each is the encoder that was exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from dovetail.networks.build import build_network
from dovetail.weights.exported import save_exported
from dovetail.weights.formats import export_weights
from dovetail.weights.matching import load_into

CALLS = {
    "ResNet": "timm.create_model('resnet18')",
    "ConvNeXt": "timm.create_model('convnext_atto', depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))",
    "Swin": "timm.create_model('swin_tiny_patch4_window7_224', depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), "
    "embed_dim=8, window_size=2)",
    "ViT": "timm.create_model('test_vit', depth=2)",
}
# A name of each program's own code, and the one that it is here.
KNOWN = {
    ("detectron2", "ConvNeXt"): ("backbone.stages.0.0.dwconv.weight", "stages.0.blocks.0.conv_dw.weight"),
    ("detectron2", "Swin"): ("backbone.layers.0.downsample.norm.weight", "layers.1.downsample.norm.weight"),
    ("detectron2", "ViT"): ("backbone.net.blocks.1.attn.qkv.weight", "blocks.1.attn.qkv.weight"),
    ("detectron2", "ResNet"): ("backbone.res2.0.conv1.norm.bias", "layer1.0.bn1.bias"),
    ("mmseg", "ConvNeXt"): ("backbone.downsample_layers.1.1.weight", "stages.1.downsample.1.weight"),
    ("mmseg", "Swin"): ("backbone.stages.2.blocks.0.attn.w_msa.qkv.bias", "layers.2.blocks.0.attn.qkv.bias"),
    ("mmseg", "ViT"): ("backbone.layers.1.ffn.layers.0.0.weight", "blocks.1.mlp.fc1.weight"),
    ("mmseg", "ResNet"): ("backbone.layer4.1.bn2.weight", "layer4.1.bn2.weight"),
    ("ultralytics", "ResNet"): ("model.0.m.4.0.conv1.weight", "layer1.0.conv1.weight"),
}


def exported(folder: Path, call: str) -> dict[str, Tensor]:
    """Export a network with random weights, and return them."""
    network = build_network(call, image_size=64)
    with torch.no_grad():
        for value in network.model.parameters():
            value.uniform_(-1, 1)
    save_exported(network, folder, method="moco-v2", extra={})
    return network.model.state_dict()


@pytest.mark.parametrize(("format", "family"), KNOWN)
def test_names_read_back_are_the_encoder(tmp_path: Path, format: str, family: str) -> None:
    state = exported(tmp_path, CALLS[family])
    written = export_weights(tmp_path, format=format, to=tmp_path / "theirs.pth")
    theirs, ours = KNOWN[format, family]
    content = torch.load(written.path)
    content = content.get("model", content)
    assert torch.equal(content[theirs], state[ours])
    target = build_network(CALLS[family], image_size=64).model
    report = load_into(target, tmp_path / "theirs.pth", strict=False)
    optional = ("num_batches_tracked",) if (format, family) != ("detectron2", "ViT") else ("cls_token", "norm.")
    assert not [name for name in report.missing if not name.startswith(optional)]
    found = target.state_dict()
    assert len(report.matched) >= 20
    assert all(torch.equal(found[name], state[name]) for name in report.matched)


def test_timms_own_encoder_below_a_pyramid(tmp_path: Path) -> None:
    state = exported(tmp_path, CALLS["ConvNeXt"] + "+fpn(channels=16)")
    written = export_weights(tmp_path, format="timm", to=tmp_path / "convnext.safetensors")
    fresh = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
    missing, unexpected = fresh.load_state_dict(load_file(written.path), strict=False)
    assert all(name.startswith("head.") for name in missing)
    assert not unexpected
    assert torch.equal(fresh.state_dict()["stem.0.weight"], state["encoder.stem.0.weight"])


def test_ultralytics_backbone_takes_it(tmp_path: Path) -> None:
    """Its class TorchVision puts the children of torchvision's ResNet into a sequence, without the last two."""
    exported(tmp_path, CALLS["ResNet"])
    written = export_weights(tmp_path, format="ultralytics", to=tmp_path / "backbone.pt")
    backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-2])
    weights = {name.removeprefix("model.0.m."): value for name, value in torch.load(written.path).items()}
    missing, unexpected = backbone.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)


class PlainConv(nn.Module):
    """Names as of nnU-Net's PlainConvUNet."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.ModuleDict({"convs": nn.ModuleList([nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3, padding=1)})])})
        self.encoder = nn.Sequential()
        self.encoder.add_module("stages", nn.Sequential(nn.Sequential(Run(block))))
        self.decoder = nn.ModuleDict({"seg_layers": nn.ModuleList([nn.Conv2d(8, 2, 1)])})

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.encoder(pixels)
        return features


class Run(nn.Module):
    """A stage of one convolution."""

    def __init__(self, block: nn.ModuleDict) -> None:
        super().__init__()
        self.convs = block["convs"]

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.convs[0]["conv"](pixels)
        return features[..., ::2, ::2]


def test_nnunet_takes_it_under_its_key(tmp_path: Path) -> None:
    network = build_network(PlainConv(), encoder="encoder", image_size=32)
    save_exported(network, tmp_path, method="moco-v2", extra={})
    content = torch.load(export_weights(tmp_path, format="nnunet", to=tmp_path / "pretrained.pth").path)
    assert set(content) == {"network_weights"}
    assert "encoder.stages.0.0.convs.0.conv.weight" in content["network_weights"]
    assert not [name for name in content["network_weights"] if "seg_layers" in name]
