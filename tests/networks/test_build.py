"""Every family of models: what is declared is computed, what is asked for is trained, and nothing else."""

from __future__ import annotations

import re

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import nn

import dovetail.networks.decoders
from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.networks.construct import construct
from dovetail.networks.known import ARCHITECTURES, list_models
from dovetail.networks.network import Network, decoder_taps, deepest_encoder_tap, finest_decoder_tap
from dovetail.networks.probe import trial_view
from dovetail.networks.vit import ViTNetwork, build_vit
from dovetail.recipe import LateralDropout, NetworkRules

SCOPE = {"smp": smp, "timm": timm, "torchvision": torchvision, "dovetail": dovetail}

# Name -> side of the image, which is as small as its decoder allows.
LIGHT = {
    "timm/resnet18": 64,
    "timm/convnext_atto": 64,
    "timm/mobilenetv3_small_050": 64,
    "timm.create_model('swin_tiny_patch4_window7_224', embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))": 64,
    "timm/resnet18+fpn": 64,
    "timm/test_resnet+fpn-bias": 64,
    "timm/test_resnet+fcn": 64,
    "timm/test_convnext+fcn-d1": 64,
    **{f"smp/{name}/tu-test_resnet": 128 if name == "pan" else 64 for name in ARCHITECTURES if name != "dpt"},
    "smp/unet/resnet18": 64,
    "smp/dpt/vit_tiny_patch16_224": 64,
    "smp/unet/mit_b0": 64,
    "smp/unet/tu-convnext_atto": 64,
    "torchvision/deeplabv3_mobilenet_v3_large": 64,
}
HEAVY = {
    "timm/resnet18+fcn": 64,
    "timm/convnext_atto+fcn-d1": 64,
    **{f"smp/{name}/resnet18": 128 if name == "pan" else 64 for name in ARCHITECTURES if name not in ("dpt", "unet")},
    "torchvision/fcn_resnet50": 64,
    "torchvision/deeplabv3_resnet50": 64,
    "torchvision/maskrcnn_resnet50_fpn": 64,
    "torchvision/maskrcnn_resnet50_fpn_v2": 64,
    "torchvision/fasterrcnn_resnet50_fpn": 64,
    "torchvision/retinanet_resnet50_fpn": 64,
    "torchvision/retinanet_resnet50_fpn_v2": 64,
}
FAMILIES = [*LIGHT, *(pytest.param(name, marks=pytest.mark.slow) for name in HEAVY)]


def built(name: str) -> Network:
    return build_network(name, image_size={**LIGHT, **HEAVY}[name])


def run(network: Network, taps: list[str], *, size_px: int | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return network(trial_view(network, size_px=size_px or network.image_size, batch_size=2), taps)


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str) -> None:
    """One build serves all claims about a model: building costs more than checking."""
    network = built(name)
    check_declared_is_computed(network)
    for tap in [deepest_encoder_tap(network.taps), *decoder_taps(network.taps)[:1], *decoder_taps(network.taps)[-1:]]:
        check_trains_what_it_reaches(network, tap)
    twin = eval(network.constructor, dict(SCOPE))
    twin.load_state_dict(network.model.state_dict(), strict=True)
    assert all(key.startswith(network.encoder_prefix) for key in encoder_names(network))


def check_declared_is_computed(network: Network) -> None:
    size = network.image_size + network.size_multiple
    taps = {name: tap for name, tap in network.taps.items() if not isinstance(network, ViTNetwork) or tap.kind == "map"}
    outputs = run(network, list(taps), size_px=size)
    assert outputs.keys() == taps.keys()
    for name, tap in taps.items():
        assert tuple(outputs[name].shape) == (2, tap.channels, -(-size // tap.stride), -(-size // tap.stride)), name
        assert tap.kind == "map"
        assert name == f"{'c' if tap.part == 'encoder' else 'p'}{tap.stride.bit_length() - 1}"


def check_trains_what_it_reaches(network: Network, tap: str) -> None:
    network.prune([tap])
    network.train()
    network.zero_grad(set_to_none=True)
    run(network, [tap])[tap].square().mean().backward()
    for parameter_name, parameter in network.model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
        assert (parameter_name in network.unreached) == (not parameter.requires_grad)
    assert any(parameter.requires_grad for parameter in network.parameters())
    if network.taps[tap].part == "encoder":
        assert not [name for name in decoder_names(network) if name not in network.unreached]


def encoder_names(network: Network) -> list[str]:
    network.prune([deepest_encoder_tap(network.taps)])
    return [name for name, value in network.model.named_parameters() if value.requires_grad]


def decoder_names(network: Network) -> list[str]:
    if not network.decoder_prefixes:
        return []
    return [name for name, _ in network.model.named_parameters() if name.startswith(network.decoder_prefixes)]


@pytest.mark.parametrize("in_channels", [1, 5])
@pytest.mark.parametrize("name", ["timm/resnet18+fpn", "smp/unet/resnet18", "smp/fpn/mit_b0", "timm/convnext_atto"])
def test_other_numbers_of_channels(name: str, in_channels: int) -> None:
    network = build_network(name, in_channels=in_channels, image_size=64)
    assert network.in_channels == in_channels
    run(network, list(network.taps))
    eval(network.constructor, dict(SCOPE)).load_state_dict(network.model.state_dict(), strict=True)


def calls(network: Network, tap: str) -> set[str]:
    """Return the names of the modules that run for a tap."""
    ran: set[str] = set()
    handles = [
        module.register_forward_hook(lambda _m, _i, _o, name=name: ran.add(name))
        for name, module in network.model.named_modules()
    ]
    run(network, [tap])
    for handle in handles:
        handle.remove()
    return ran


@pytest.mark.parametrize(
    ("name", "tap", "runs", "rests"),
    [
        ("timm/resnet18", "c3", ["layer2"], ["layer3", "layer4"]),
        ("timm/resnet18+fpn", "c5", ["encoder.layer4"], ["decoder.inner_blocks.3"]),
        (
            "timm/resnet18+fpn",
            "p4",
            ["decoder.layer_blocks.2", "decoder.inner_blocks.3"],
            ["decoder.layer_blocks.3", "decoder.layer_blocks.1", "decoder.inner_blocks.1"],
        ),
        ("smp/unet/resnet18", "p3", ["decoder.blocks.1"], ["decoder.blocks.2", "segmentation_head"]),
        ("smp/unetplusplus/resnet18", "p4", ["decoder.blocks.x_0_0"], ["decoder.blocks.x_0_1"]),
        ("smp/upernet/resnet18", "p5", ["decoder.psp"], ["decoder.fusion_block"]),
        ("torchvision/deeplabv3_mobilenet_v3_large", "c2", ["backbone.3"], ["backbone.16", "classifier.0"]),
        ("torchvision/deeplabv3_mobilenet_v3_large", "p4", ["classifier.3"], ["classifier.4"]),
    ],
)
def test_nothing_runs_beyond_the_tap(name: str, tap: str, runs: list[str], rests: list[str]) -> None:
    ran = calls(built(name), tap)
    assert set(runs) <= ran
    assert not set(rests) & ran


@pytest.mark.parametrize(
    "name", ["timm/resnet18+fpn", "smp/unet/resnet18", "smp/fpn/resnet18", "smp/dpt/vit_tiny_patch16_224"]
)
def test_lateral_dropout_reaches_the_decoder_and_not_the_encoder(name: str) -> None:
    network = built(name).eval()
    finest = finest_decoder_tap(network.taps)
    deepest = deepest_encoder_tap(network.taps)
    with torch.no_grad():
        plain = run(network, [deepest, finest])
        network = network.following(NetworkRules(lateral_dropout=LateralDropout(p=0.5)))
        dropped = run(network, [deepest, finest])
        network = network.following(NetworkRules(lateral_dropout=LateralDropout(p=1.0, kind="path")))
        bare = run(network, [deepest, finest])
    assert torch.equal(plain[deepest], dropped[deepest])
    assert not torch.equal(plain[finest], dropped[finest])
    assert not torch.equal(bare[finest], torch.zeros_like(bare[finest])), "the deepest map must still come through"


def test_aliases_of_taps_are_not_taps() -> None:
    with pytest.raises(DovetailError, match="no tap 'p5x'; did you mean 'p5'"):
        run(built("timm/resnet18+fpn"), ["p5x"])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("timm/resnet18x", "did you mean 'timm/resnet18'?"),
        ("timm/resnet5O+fpn", "did you mean 'timm/resnet50+fpn'?"),
        ("timm/tu-resnet18", "did you mean 'timm/resnet18'?"),
        ("timm/xyz", "`dovetail models --library timm --all`"),
        ("timm/resnet18+fpnn", "There is no model 'timm/resnet18+fpnn'; did you mean 'timm/resnet18+fpn'?"),
        ("smp/unett/resnet18", "did you mean 'smp/unet/resnet18'?"),
        ("smp/unet/resnet19", "did you mean 'smp/unet/resnet1"),
        ("smp/unet/resnet5", "did you mean 'smp/unet/resnet50'?"),
        ("smp/unet/tu-resnet18x", "did you mean 'smp/unet/tu-resnet18'?"),
        ("smp/unet/convnext_tiny", "did you mean 'smp/unet/tu-convnext_tiny'?"),
        ("smp/FPN/tf_efficientnet_lite0", "did you mean 'smp/FPN/tu-tf_efficientnet_lite0'?"),
        ("smp/fpn/tu-tf_efficientnet_lite", "did you mean 'smp/fpn/tu-tf_efficientnet_lite0'?"),
        ("torchvision/fcn_resnet5", "did you mean 'torchvision/fcn_resnet50'?"),
        ("unet/resnet18", "did you mean 'smp/unet/resnet18'?"),
        ("resnet50+fpn", "did you mean 'timm/resnet50+fpn'?"),
        ("smp/unet", "write it as 'smp/unet/resnet50'"),
        ("smp/linknet/mit_b0", "choose another encoder"),
        ("torchvision/maskrcnn_resnet50", "did you mean 'torchvision/maskrcnn_resnet50_fpn'?"),
        ("resnet50", "did you mean 'timm/resnet50'?"),
        ("xyz", "use 'timm/<name>'"),
        ("timm/", "use 'timm/<name>'"),
    ],
)
def test_unknown_names(name: str, sentence: str) -> None:
    with pytest.raises(DovetailError, match=re.escape(sentence)):
        build_network(name, image_size=64)


def test_calls_of_smp_with_options_of_their_own() -> None:
    call = "smp.FPN(encoder_name='resnet18', decoder_pyramid_channels=16, decoder_segmentation_channels=32)"
    network = build_network(call, image_size=64)
    assert network.taps["p3"].channels == 16
    again = construct(network.constructor)
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in network.model.state_dict().items()
    }
    assert build_network("smp.Unet('resnet18', in_channels=2)", in_channels=3, image_size=64).in_channels == 2


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("smp.FPN(encoder_name=name)", "not a call with plain values"),
        ("smp.FPM(encoder_name='resnet18')", "cannot be built from its name"),
        ("smp.FPN('resnet18', encoder_weights='imagenet')", "would load other weights"),
        ("smp.FPN('resnet18', decoder_channels=4)", "has no option 'decoder_channels'"),
    ],
)
def test_calls_that_cannot_be_built(call: str, sentence: str) -> None:
    with pytest.raises(DovetailError, match=sentence):
        build_network(call, image_size=64)


def test_torchvision_takes_three_channels() -> None:
    with pytest.raises(DovetailError, match="replace the first convolution"):
        build_network("torchvision/fcn_resnet50", in_channels=5)


def test_an_fpn_needs_four_strides() -> None:
    with pytest.raises(DovetailError, match="needs maps of strides 4, 8, 16 and 32"):
        build_network("timm/mixer_s32_224+fpn", image_size=224)


def test_wrong_image_size_is_said() -> None:
    with pytest.raises(DovetailError, match="64 px"):
        build_network("smp/pan/resnet18", image_size=64)


def test_vits_go_to_their_own_builder() -> None:
    network = build_network("timm/vit_tiny_patch16_224", image_size=64)
    assert type(network) is type(build_vit("vit_tiny_patch16_224", image_size=64))
    assert type(build_network(network.model)) is type(network)
    pyramid = build_network("timm/vit_tiny_patch16_224+fpn", image_size=64)
    assert decoder_taps(pyramid.taps) == ["p2", "p3", "p4", "p5"]
    assert type(build_network(pyramid.model)) is type(pyramid)
    with pytest.raises(DovetailError, match="did you mean 'fpn'"):
        build_network("timm/vit_tiny_patch16_224+fpm", image_size=64)


def test_instances_are_recognised() -> None:
    unet = smp.Unet("resnet18", encoder_weights=None, decoder_channels=(64, 32, 16, 8, 8), classes=4)
    network = build_network(unet, image_size=64)
    assert network.taps["p0"].channels == 8
    twin = eval(network.constructor, dict(SCOPE))
    twin.load_state_dict(unet.state_dict(), strict=True)
    composed = dovetail.networks.decoders.encoder_fcn("resnet18", channels=32, dilation=1)
    assert build_network(composed, image_size=64).taps["p5"].channels == 32
    segmenter = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)
    assert "p4" in build_network(segmenter, image_size=64).taps


def test_frozen_parameters_of_an_instance_stay_frozen() -> None:
    unet = smp.Unet("resnet18", encoder_weights=None)
    unet.encoder.requires_grad_(False)
    network = build_network(unet, image_size=64)
    assert not any(parameter.requires_grad for parameter in network.model.encoder.parameters())
    assert all(parameter.requires_grad for parameter in network.model.decoder.parameters())
    assert len(network.frozen) == len(list(unet.encoder.parameters()))


def test_own_modules_need_their_parts_named() -> None:
    with pytest.raises(DovetailError, match="paths of its parts as `encoder` and `decoder`"):
        build_network(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(DovetailError, match="also needs `encoder`"):
        build_network(nn.Sequential(nn.Conv2d(3, 4, 3)), decoder="0")
    with pytest.raises(DovetailError, match="already has an encoder and a decoder"):
        build_network("timm/resnet18", encoder="")


def test_building_leaves_random_numbers_and_statistics_alone() -> None:
    torch.manual_seed(3)
    model = smp.Unet("resnet18", encoder_weights=None)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.get_rng_state()
    network = build_network(model, image_size=64)
    network.prune(["p0"])
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(part.training for part in network.modules())


def test_lists_of_models() -> None:
    assert "smp/unet/resnet18" in list_models("unet/resnet18")
    assert list_models("torchvision/*_v2") == [
        "torchvision/fasterrcnn_resnet50_fpn_v2",
        "torchvision/maskrcnn_resnet50_fpn_v2",
        "torchvision/retinanet_resnet50_fpn_v2",
    ]
    assert "timm/resnet50+fpn" in list_models()
    assert not list_models("no such thing")


def test_taps_by_rank() -> None:
    taps = built("smp/unet/resnet18").taps
    assert decoder_taps(taps) == ["p0", "p1", "p2", "p3", "p4"]
    assert finest_decoder_tap(taps) == "p0"
    assert deepest_encoder_tap(built("smp/deeplabv3/resnet18").taps) == "c3"
    with pytest.raises(DovetailError, match="has no decoder"):
        finest_decoder_tap(built("timm/resnet18").taps)
