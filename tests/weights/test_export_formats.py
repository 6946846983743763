"""Exports for other libraries: their names, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors.torch import load_file

from dovetail.errors import DovetailError
from dovetail.weights.formats import export_weights
from tests.weights.test_exported import export


def test_formats(tmp_path: Path) -> None:
    export(tmp_path)
    written = export_weights(tmp_path, format="smp", to=tmp_path / "out" / "unet.pth")
    missing, _ = smp.Unet("resnet18", encoder_weights=None).load_state_dict(torch.load(written.path), strict=False)
    assert missing == ["segmentation_head.0.weight", "segmentation_head.0.bias"]
    built = "smp.Unet(encoder_name='resnet18', encoder_weights=None, in_channels=3)"
    head = "segmentation_head.0.weight, segmentation_head.0.bias"
    assert str(written).endswith(f"the whole of {built} without its untrained head ({head})")
    for format, fresh in (("timm", timm.create_model("resnet18")), ("torchvision", torchvision.models.resnet18())):
        written = export_weights(tmp_path, format=format, to=tmp_path / f"{format}.safetensors")
        missing, unexpected = fresh.load_state_dict(load_file(written.path), strict=False)
        assert (set(missing), unexpected) == ({"fc.weight", "fc.bias"}, [])
    written = export_weights(tmp_path, format="decoder", to=tmp_path / "decoder.pt")
    smp.Unet("resnet18", encoder_weights=None).decoder.load_state_dict(torch.load(written.path))


def test_detectron2_and_mm_names(tmp_path: Path) -> None:
    network = export(tmp_path, "timm/resnet18+fpn", taps=("p2",))
    written = export_weights(tmp_path, format="detectron2", to=tmp_path / "d2.pth")
    weights = torch.load(written.path)["model"]
    state = network.model.state_dict()
    for theirs, ours in {
        "backbone.bottom_up.stem.conv1.weight": "encoder.conv1.weight",
        "backbone.bottom_up.stem.conv1.norm.running_var": "encoder.bn1.running_var",
        "backbone.bottom_up.res2.1.conv2.weight": "encoder.layer1.1.conv2.weight",
        "backbone.bottom_up.res3.0.shortcut.weight": "encoder.layer2.0.downsample.0.weight",
        "backbone.bottom_up.res5.0.shortcut.norm.bias": "encoder.layer4.0.downsample.1.bias",
        "backbone.bottom_up.res4.1.conv1.norm.weight": "encoder.layer3.1.bn1.weight",
        "backbone.fpn_lateral5.weight": "decoder.inner_blocks.3.0.weight",
        "backbone.fpn_lateral2.norm.weight": "decoder.inner_blocks.0.1.weight",
        "backbone.fpn_output2.weight": "decoder.layer_blocks.0.0.weight",
    }.items():
        assert torch.equal(weights[theirs], state[ours])
    assert "backbone.fpn_output3.weight" not in weights, "no tap reached it"
    assert len(weights) == 100 + 5 * 5
    weights = load_file(export_weights(tmp_path, format="mmseg", to=tmp_path / "mm.safetensors").path)
    assert torch.equal(weights["neck.fpn_convs.0.bn.bias"], state["decoder.layer_blocks.0.1.bias"])
    assert torch.equal(weights["backbone.layer1.0.conv1.weight"], state["encoder.layer1.0.conv1.weight"])
    export(tmp_path, "timm/resnet18+fcn", taps=("p5",))
    weights = load_file(export_weights(tmp_path, format="mmseg", to=tmp_path / "mm.safetensors").path)
    assert "decode_head.convs.1.bn.running_mean" in weights


@pytest.mark.parametrize(
    ("name", "format", "to", "sentence"),
    [
        ("timm/resnet18", "tim", "a.pt", "did you mean 'timm'"),
        ("timm/resnet18", "timm", "a.bin", "unsupported suffix"),
        ("timm/resnet18", "decoder", "a.pt", "has no decoder"),
        ("timm/resnet18", "smp", "a.pt", "is not a model of smp"),
        (
            "timm/test_efficientnet",
            "detectron2",
            "a.pt",
            r"does not support the encoder of .*ConvNeXt, Swin, ViT, ResNet",
        ),
        ("timm/convnext_atto", "ultralytics", "a.pt", "ultralytics does not support the encoder"),
        ("timm/convnext_atto", "torchvision", "a.pt", "supports ResNets and models of torchvision"),
        ("timm/resnet18", "nnunet", "a.pt", "is not an nnU-Net network"),
        ("smp/unet/resnet18", "detectron2", "a.pt", "no counterpart of this decoder"),
    ],
)
def test_formats_that_cannot_be(tmp_path: Path, name: str, format: str, to: str, sentence: str) -> None:
    export(tmp_path, name, taps=("c5",) if name.startswith("timm") else ("p0",))
    with pytest.raises(DovetailError, match=sentence):
        export_weights(tmp_path, format=format, to=tmp_path / to)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_files_that_cannot_be_written(tmp_path: Path, ending: str) -> None:
    export(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / f"folder.{ending}").mkdir()
    for to in (tmp_path / "file" / f"x.{ending}", tmp_path / f"folder.{ending}"):
        with pytest.raises(DovetailError, match=r"cannot be written \(.+\); specify another file with --to"):
            export_weights(tmp_path, format="decoder", to=to)
