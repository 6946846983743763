"""Starting weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from dovetail.errors import DovetailError
from dovetail.networks import initialise as module
from dovetail.networks.build import build_network
from dovetail.networks.initialise import initialise


def test_none_leaves_everything() -> None:
    network = build_network("timm/resnet18", image_size=64)
    before = network.model.state_dict()["conv1.weight"].clone()
    assert initialise(network, None) == 0
    assert torch.equal(before, network.model.state_dict()["conv1.weight"])


def test_a_file_must_cover_the_whole_model(tmp_path: Path) -> None:
    network = build_network("timm/resnet18+fcn", image_size=64)
    weights = {name: torch.full_like(value, 2) for name, value in network.model.state_dict().items()}
    save_file(weights, tmp_path / "all.safetensors")
    assert initialise(network, tmp_path / "all.safetensors") == len(weights)
    assert all(bool((value == 2).all()) for value in network.model.state_dict().values())
    weights.pop("encoder.conv1.weight")
    save_file(weights, tmp_path / "less.safetensors")
    with pytest.raises(DovetailError, match=r"lack 1 tensors of the model, such as encoder\.conv1\.weight"):
        initialise(network, tmp_path / "less.safetensors")
    weights["encoder.conv1.weight"] = torch.zeros(1)
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(DovetailError, match="another shape"):
        initialise(network, tmp_path / "other.safetensors")


def test_tensors_that_the_model_lacks_are_refused_but_a_classifiers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = build_network("timm/test_resnet+fcn", image_size=64)
    weights = {name: torch.full_like(value, 2) for name, value in network.model.state_dict().items()}
    heads = {"encoder.fc.weight": torch.zeros(3, 4), "head.bias": torch.zeros(3)}
    save_file(weights | heads, tmp_path / "head.safetensors")
    assert initialise(network, tmp_path / "head.safetensors") == len(weights)
    (record,) = caplog.records
    assert "left out the classifier" in record.getMessage()
    assert all(name in record.getMessage() for name in heads)
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    more = {name: torch.zeros_like(value) for name, value in weights.items()}
    save_file(more | {"encoder.layer5.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(DovetailError, match=r"1 tensor that the model lacks, such as encoder\.layer5\.weight"):
        initialise(network, tmp_path / "more.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in network.model.state_dict().items())


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    network = build_network("timm/test_resnet", image_size=64)
    save_file({"a": torch.zeros(100)}, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-20])
    with pytest.raises(DovetailError, match=r"cut\.safetensors cannot be loaded \(.*; export"):
        initialise(network, tmp_path / "cut.safetensors")


def test_a_missing_file(tmp_path: Path) -> None:
    network = build_network("timm/resnet18", image_size=64)
    with pytest.raises(DovetailError, match="There are no weights"):
        initialise(network, tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/resnet18+fpn", "smp/unet/tu-resnet18", "smp/unet/resnet18"])
def test_imagenet_weights_reach_the_encoder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own fetching is replaced by a local ResNet; names and places are what is tested."""
    library = timm.create_model("resnet18", num_classes=0)
    encoder = {key: value for key, value in library.state_dict().items() if not key.startswith("fc.")}
    monkeypatch.setattr(module, "_fetch", lambda _construction: encoder)
    network = build_network(name, image_size=64, pretrained=True)
    state = network.model.state_dict()
    for key, value in encoder.items():
        assert torch.equal(state[network.encoder_prefix + key], value)


@pytest.mark.parametrize(
    "model",
    [
        lambda: "smp/dpt/tu-test_vit",
        lambda: "smp.DPT('tu-test_vit')",
        lambda: smp.DPT("tu-test_vit", encoder_weights=None, in_channels=3, img_size=96),
    ],
    ids=["name", "call", "module"],
)
def test_imagenet_weights_reach_a_dpt(model: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's fetching is replaced by other random weights."""
    create, fetched = timm.create_model, []

    def local(*args: Any, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        made: nn.Module = create(*args, pretrained=False, **kwargs)
        if pretrained:
            fetched.append(made)
        return made

    network = build_network(model(), image_size=96)
    monkeypatch.setattr(timm, "create_model", local)
    count = initialise(network, "imagenet")
    (library,) = fetched
    state = network.model.state_dict()
    assert count == len(library.state_dict()) == sum(name.startswith("encoder.") for name in state)
    for key, value in library.state_dict().items():
        assert torch.equal(state[f"encoder.model.{key}"], value)


def test_imagenet_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_construction: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(module, "_fetch", fail)
    with pytest.raises(
        DovetailError, match=r"are not available \(no route to host\); connect once .* the encoder tf_eff"
    ):
        build_network("timm/resnet18", image_size=64, pretrained=True)


def test_own_modules_have_no_imagenet_weights() -> None:
    network = build_network(nn.Sequential(nn.Conv2d(3, 4, 2, stride=2)), encoder="", image_size=32)
    with pytest.raises(DovetailError, match="known for named models only"):
        initialise(network, "imagenet")
