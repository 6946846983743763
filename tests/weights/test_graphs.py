"""Models as programs: each answers as the model does, for images of other sizes too."""

from __future__ import annotations

from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from dovetail.errors import OptionsError
from dovetail.networks.build import build_network
from dovetail.weights.graphs import EncoderMaps, export_graph


def unet(encoder: str = "resnet18") -> nn.Module:
    return smp.Unet(encoder, encoder_weights=None, decoder_channels=(8, 8, 8, 8, 8)).eval()


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_torch_export_of_a_whole_model(tmp_path: Path) -> None:
    model = unet("tu-test_resnet")
    written = export_graph(model, format="torch-export", to=tmp_path / "unet.pt2", image_size=(64, 96))
    program = torch.export.load(tmp_path / "unet.pt2").module()
    for height, width in [(64, 64), (64, 96), (96, 64), (128, 64)]:
        pixels = torch.rand(1, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(program(pixels), model(pixels), rtol=1e-4, atol=1e-5)
    assert "the whole model for pixels [B, 3, H, W]" in str(written)


@pytest.mark.filterwarnings("ignore")
def test_same_padding_is_exported_for_multiples_of_32(tmp_path: Path) -> None:
    layers = [Conv2dSame(3, 4, 3, stride=2), Conv2dSame(4, 4, (5, 3), stride=(2, 1)), Conv2dSame(4, 4, 3, dilation=2)]
    model = nn.Sequential(*layers).eval()
    written = export_graph(model, format="torch-export", to=tmp_path / "same.pt2", image_size=(36, 64))
    assert "pixels [B, 3, H, W] (H and W multiples of 32)" in str(written)
    assert all(type(one) is Conv2dSame for one in layers)  # the caller's module is unchanged
    program = torch.export.load(tmp_path / "same.pt2").module()
    for height, width in [(32, 96), (64, 32)]:
        pixels = torch.rand(1, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(program(pixels), model(pixels), rtol=1e-5, atol=1e-6)
    with pytest.raises((AssertionError, RuntimeError)):
        program(torch.rand(1, 3, 34, 64))  # the second map has 17 rows


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [True, False])
def test_onnx_of_an_encoder(tmp_path: Path, dynamic: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = build_network("timm/test_resnet+fpn(channels=16)", image_size=64).model.eval()
    path = tmp_path / "encoder.onnx"
    written = export_graph(model, format="onnx", to=path, part="encoder", image_size=64, dynamic=dynamic)
    pixels = torch.rand(3, 3, 96, 160) if dynamic else torch.rand(3, 3, 64, 64)
    session = onnxruntime.InferenceSession(str(path))
    found = session.run(None, {"pixels": pixels.numpy()})
    with torch.no_grad():
        expected = EncoderMaps(model)(pixels)
    assert len(found) == len(expected) == 4
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-3, atol=1e-4)
    assert "opset 18, within" in str(written)


def test_onnx_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionsError, match=r"needs the package onnx, .* `pip install \"dovetail-ssl\[onnx\]\"`"):
        export_graph(unet(), format="onnx", to=tmp_path / "a.onnx", image_size=64)
    assert not list(tmp_path.iterdir())


def test_the_encoder_of_smp_answers_with_its_maps() -> None:
    model = unet()
    with torch.no_grad():
        maps = EncoderMaps(model)(torch.rand(1, 3, 64, 64))
    assert [tuple(one.shape[1:]) for one in maps] == [
        (64, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit+fpn"])
def test_the_layout_of_the_hub(tmp_path: Path, name: str) -> None:
    model = build_network(name, image_size=96).model
    export_graph(model, format="hugging-face", to=tmp_path / "hub")
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "hub").iterdir()}
    loaded = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    encoder = getattr(model, "encoder", model).state_dict()
    assert all(torch.equal(value, encoder[key]) for key, value in loaded.state_dict().items())


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match=r"expected \.onnx for onnx"):
        export_graph(unet(), format="onnx", to=tmp_path / "a.pt")
    with pytest.raises(OptionsError, match="is not a timm model"):
        export_graph(unet(), format="hugging-face", to=tmp_path / "hub")
    with pytest.raises(OptionsError, match="cannot run on its own"):
        export_graph(nn.Conv2d(3, 3, 1), format="torch-export", to=tmp_path / "a.pt2", part="encoder")
