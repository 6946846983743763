"""Starting weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from dovetail.errors import DovetailError
from dovetail.networks import initialise as module
from dovetail.networks.build import build_network
from dovetail.networks.initialise import describe_init, initialise


def test_none_leaves_everything() -> None:
    network = build_network("timm/resnet18", image_size=64)
    before = network.model.state_dict()["conv1.weight"].clone()
    assert initialise(network, None) == 0
    assert torch.equal(before, network.model.state_dict()["conv1.weight"])


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
        DovetailError,
        match=r"are not available \(no route to host\); download https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/"
        r"model.safetensors elsewhere and pass it with --init FILE, connect once .* the encoder tf_eff",
    ):
        build_network("timm/resnet18", image_size=64, pretrained=True)


def test_own_modules_have_no_imagenet_weights() -> None:
    network = build_network(nn.Sequential(nn.Conv2d(3, 4, 2, stride=2)), encoder="", image_size=32)
    with pytest.raises(DovetailError, match="only available for named models"):
        initialise(network, "imagenet")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm/resnet18+fpn", "timm/resnet18.a1_in1k, license apache-2.0, downloaded by the model library"),
        ("smp/unet/resnet18", "smp-hub/resnet18.imagenet, license not stated by the library"),
        ("smp/unet/tu-resnet18", "timm/resnet18.a1_in1k, license apache-2.0"),
        ("torchvision/fcn_resnet50", "torchvision's resnet50 IMAGENET1K_V1"),
    ],
)
def test_it_is_said_which_weights_and_their_license(name: str, said: str) -> None:
    assert said in describe_init(build_network(name, image_size=64), "imagenet")
