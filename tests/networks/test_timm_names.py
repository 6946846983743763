"""timm's models named with options of their own, and decoders with theirs: they arrive, come back, and load nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dovetail
from dovetail.downstream.detect.model import DetectorSpec, build_detector
from dovetail.downstream.segment.model import build_segmenter
from dovetail.downstream.start import source_of
from dovetail.errors import DovetailError
from dovetail.networks import initialise as initialise_module
from dovetail.networks.build import build_network, is_timm_vit
from dovetail.networks.construct import construct, refuse_loading
from dovetail.networks.network import Construction, decoder_taps
from dovetail.networks.timm_names import TimmName, encoder_of
from dovetail.networks.vit import ViTNetwork, build_vit
from dovetail.networks.vit_fpn import ViTFPNNetwork
from tests.downstream.pictures import class_folder, exported_run
from tests.downstream.test_finetune import mask_folder

VIT = "timm.create_model('test_vit', patch_size=8, depth=4)"
CNN = "timm.create_model('test_resnet', stem_width=16, channels=(32, 64, 96, 128))"
FAST: dict[str, Any] = {"accelerator": "cpu", "precision": "float32", "workers": 0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test_vit", TimmName("test_vit")),
        ("test_vit+fpn", TimmName("test_vit", {}, "fpn", {}, plus=True)),
        ("resnet50+fpn-bias(channels=64)", TimmName("resnet50", {}, "fpn-bias", {"channels": 64}, plus=True)),
        (VIT, TimmName("test_vit", {"patch_size": 8, "depth": 4})),
        (f"{VIT} + fpn(channels=8)", TimmName("test_vit", {"patch_size": 8, "depth": 4}, "fpn", {"channels": 8}, True)),
        ("timm.create_model('x', a='b+c')+fcn", TimmName("x", {"a": "b+c"}, "fcn", {}, plus=True)),
        ("timm.create_model('x', pretrained=False)", TimmName("x")),
    ],
)
def test_names_are_read(text: str, expected: TimmName) -> None:
    assert TimmName.parse(text) == expected


@pytest.mark.parametrize(
    "name",
    [
        VIT,
        f"{VIT}+fpn",
        f"{VIT}+fpn(channels=32, norm=False)",
        "timm/test_vit+fpn-bias(channels=32)",
        CNN,
        f"{CNN}+fpn(channels=32)",
        f"{CNN}+fcn(channels=32, dilation=2)",
        "timm/test_resnet+fcn-d1(channels=32)",
    ],
)
@pytest.mark.parametrize("in_channels", [3, 5])
def test_what_is_exported_builds_and_loads_strictly(name: str, in_channels: int, tmp_path: Path) -> None:
    network = build_network(name, in_channels=in_channels, image_size=64)
    assert network.in_channels == in_channels
    again = construct(network.constructor)
    again.load_state_dict(network.model.state_dict(), strict=True)
    pixels = torch.randn(1, in_channels, 64, 64)
    for ours, theirs in zip(answers(network.model, pixels), answers(again, pixels), strict=True):
        assert torch.equal(ours, theirs)
    if "fpn(" in name or "fcn(" in name or "(channels=32)" in name:
        assert {network.taps[tap].channels for tap in decoder_taps(network.taps)} == {32}


def answers(model: torch.nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        answer = model.eval()(pixels)
    return list(answer.values()) if isinstance(answer, dict) else [answer]


def test_options_arrive() -> None:
    vit = build_network(VIT, image_size=64)
    assert type(vit) is ViTNetwork
    assert is_timm_vit(VIT)
    assert vit.taps["patches"].stride == 8
    assert len(vit.blocks()) == 4
    pyramid = build_network(f"{VIT}+fpn(norm=False)", image_size=64)
    assert isinstance(pyramid, ViTFPNNetwork)
    assert pyramid.taps["patches"].stride == 8
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in pyramid.modules())
    cnn = build_network(CNN, image_size=64)
    assert [cnn.taps[name].channels for name in ("c2", "c3", "c4", "c5")] == [
        32,
        64,
        4 * 96,
        128,
    ]  # the third has bottlenecks
    dilated = build_network("timm/test_resnet+fcn(dilation=3)", image_size=64).model
    assert [module.dilation for module in dilated.decoder.modules() if hasattr(module, "dilation")] == [(3, 3)] * 2


def test_options_go_over_ours() -> None:
    vit = build_network("timm.create_model('test_vit', img_size=32, in_chans=2)", image_size=64)
    assert (vit.image_size, vit.in_channels) == (32, 2)
    assert build_network("timm.create_model('test_resnet', in_chans=2)+fcn", image_size=64).in_channels == 2


def test_a_bare_vit_has_no_decoder() -> None:
    with pytest.raises(DovetailError, match=r"leave out \+fpn"):
        build_vit("test_vit+fpn(channels=8)")


def test_a_call_without_options_is_the_name() -> None:
    for name in ("test_vit", "test_resnet"):
        for decoder in ("", "+fpn"):
            spellings = (f"timm/{name}{decoder}", f"timm.create_model('{name}'){decoder}")
            named, called = (build_network(one, image_size=64).constructor for one in spellings)
            assert named == called


def test_stochastic_depth_and_recomputed_blocks_reach_the_vit() -> None:
    for name in (VIT, f"{VIT}+fpn(channels=16)"):
        network = build_network(name, image_size=64, drop_path=0.2, checkpoint_blocks=True)
        assert isinstance(network, ViTNetwork)
        assert network.vit.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
        assert network.vit.grad_checkpointing
        assert "drop_path" not in network.constructor
    with pytest.raises(DovetailError, match="leave one out"):
        build_network("timm.create_model('test_vit', drop_path_rate=0.1)", image_size=64, drop_path=0.2)
    with pytest.raises(DovetailError, match="only apply to timm's ViTs"):
        build_network(CNN, image_size=64, drop_path=0.2)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "timm.create_model('test_vit', patchsize=8)",
            r"unexpected keyword argument 'patchsize'(\. Did you mean '\w+'\?)?\); check its timm options",
        ),
        ("timm.create_model('test_resnet', stemwidth=8)", "'stemwidth'"),
        ("timm.create_model('test_vit', patchsize=8)+fpn", "'patchsize'"),
        ("timm.create_model('test_resnet', stemwidth=8)+fcn", "'stemwidth'"),
        ("timm.create_model('test_vit', depth='deep')", "cannot be built"),
        ("timm.create_model('test_vti')", "did you mean 'timm/test_vit"),
        ("timm.create_model('test_vti', depth=2)+fpn", "did you mean 'test_vit"),
        ("timm.create_model(name, depth=2)", "not a call of timm with plain values"),
        ("timm.create_model('test_vit', 8)", "not a call of timm with plain values"),
        ("timm.create_model('test_vit', **{'depth': 2})", "not a call of timm with plain values"),
        ("timm.create_modle('test_vit')", "not a call of timm with plain values"),
        ("timm.create_model('test_vit'", "not a call of timm with plain values"),
        (
            "timm/resnet18(stem_width=16)",
            r"write its options as \"timm.create_model\('resnet18', stem_width=16\)",
        ),
        ("timm/resnet18+fpn(64)", r"write it as \"\+fpn\(channels=64\)"),
        ("timm/resnet18+fpn(channels=x)", "not a decoder with plain options"),
        ("timm/resnet18+fpn(channels=64", "not a decoder with plain options"),
        ("timm/resnet18+fpn(channel=64)", "did you mean 'channels'"),
        ("timm/resnet18+fpn(dilation=2)", "no option of the decoder fpn 'dilation'"),
        ("timm/resnet18+fcn(norm=True)", "no option of the decoder fcn 'norm'"),
        ("timm/resnet18+fpn(norm=1)", "must be True or False"),
        ("timm/resnet18+fpn(channels=True)", "must be a positive integer"),
        ("timm/resnet18+fcn(channels=0)", "must be a positive integer"),
        ("timm/resnet18+fpnn(channels=8)", "no decoder 'fpnn'; did you mean 'fpn'"),
        ("timm/resnet18+", "There is no decoder ''"),
        (f"{VIT}+", "There is no decoder of a ViT ''"),
        (f"{VIT}+fcn(channels=8)", "There is no decoder of a ViT 'fcn'"),
        (f"{VIT}+fpn(dilation=2)", "no option of the decoder fpn 'dilation'"),
        ("timm.create_model('test_resnet', features_only=True)", "does not return intermediate maps"),
        ("timm.create_model('test_vit', patch_size=7)+fpn", "does not support patches of 7"),
    ],
)
def test_mistakes_get_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(DovetailError, match=sentence) as raised:
        build_network(name, image_size=56 if "=7" in name else 64)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("decoder", ["", "+fpn(channels=8)"])
@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])
@pytest.mark.parametrize(
    "option",
    ["pretrained=True", "checkpoint_path='a.pth'", "pretrained_cfg={'file': 'a'}", "cache_dir='a'", "act_layer='a/b'"],
)
def test_names_that_ask_for_weights_are_refused(
    model: str, option: str, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.create_model", lambda *_args, **_options: pytest.fail("timm was called"))
    with pytest.raises(DovetailError, match="would load weights or files"):
        build_network(f"timm.create_model('{model}', {option}){decoder}", image_size=64)


@pytest.mark.parametrize(
    "options",
    [
        {"pretrained": True},
        {"checkpoint_path": "a.pth"},
        {"pretrained_cfg_overlay": {"file": "a.pth"}},
        {"other": {"deeper": [{"pretrained_cfg": "a"}]}},
        {"other": ["hf-hub:a"]},
        {"other": ("a", {"b": "c/d"})},
        {"a\\b": 1},
    ],
)
def test_a_files_text_may_not_ask_for_weights_deeper_down(options: dict[str, Any]) -> None:
    for path in ("decoders.encoder_fpn", "decoders.encoder_fcn", "vit_fpn.vit_fpn"):
        with pytest.raises(DovetailError, match="would load other weights"):
            construct(str(Construction(f"dovetail.networks.{path}", {"encoder_options": options}, ("test_vit",))))
    refuse_loading(Construction("x", {"encoder_options": {"pretrained": False, "depth": 2, "channels": (1, 2)}}))


def test_imagenet_weights_are_asked_for_with_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    library, asked = initialise_module.timm.create_model, []

    def fetched(name: str, *, pretrained: bool, **options: Any) -> torch.nn.Module:
        asked.append({"name": name, "pretrained": pretrained, **options})
        return library(name, **options)  # type: ignore[no-any-return]

    networks = [build_network(f"{CNN}{decoder}", image_size=64) for decoder in ("", "+fpn")]
    monkeypatch.setattr("timm.create_model", fetched)
    for network in networks:
        initialise_module.initialise(network, "imagenet")
    assert [one["channels"] for one in asked if one["pretrained"]] == [(32, 64, 96, 128)] * 2


def test_encoders_keep_their_options_under_other_decoders() -> None:
    for name, decoder in ((VIT, "fpn"), (VIT, "upernet"), (f"{VIT}+fpn(channels=16)", "upernet")):
        source = source_of(None, name, image_size=64)
        body: Any = build_segmenter(source, classes=3, decoder=decoder)[0]
        assert (len(body.body.encoder.blocks), body.body.encoder.patch_embed.patch_size) == (4, (8, 8)), name
    for name, decoder in ((CNN, "auto"), (CNN, "fpn"), (f"{CNN}+fpn(channels=16)", "fcn")):
        body = build_segmenter(source_of(None, name, image_size=64), classes=3, decoder=decoder)[0]  # type: ignore[arg-type]
        assert body.body.encoder.num_features == 128, name
    spec = DetectorSpec("boxes", "rcnn", 2, (64,), 64)
    for name in (VIT, CNN, f"{CNN}+fcn(channels=8)"):
        source = source_of(None, name, image_size=64)
        found = build_detector(source, spec)[1].state_dict().keys()
        plain = construct(source.constructor).state_dict().keys()
        wanted = {key if key.startswith("encoder.") else f"encoder.{key}" for key in plain if "decoder." not in key}
        assert wanted <= set(found), name
    call = Construction.parse(source_of(None, VIT, image_size=64).constructor)
    assert call is not None
    assert encoder_of(call) == ("test_vit", {"patch_size": 8, "depth": 4})


@pytest.mark.parametrize("model", [VIT, f"{VIT}+fpn(channels=16)", CNN, f"{CNN}+fcn(channels=16, dilation=1)"])
def test_runs_are_measured_and_fine_tuned(model: str, tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run", model, image_size=32)
    results = dovetail.evaluate_knn(run=run, data=class_folder(tmp_path / "set"), k=[1], **FAST)
    assert results is not None
    data = mask_folder(tmp_path / "masks", images=4)
    options: dict[str, Any] = {"steps": 1, "batch_size": 2, "crop_size": 32}
    assert dovetail.finetune_segment(run=run, data=data, out=tmp_path / "tuned", **options, **FAST) is not None


def test_a_model_that_takes_other_channels_than_the_images_is_told(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match="expects 1 channels, but images are read with 3; specify --in-channels 1"):
        dovetail.pretrain(
            data=class_folder(tmp_path / "photos"),
            model="timm.create_model('test_resnet', in_chans=1)",
            method="simclr",
            out=tmp_path / "run",
            max_steps=1,
            **FAST | {"precision": "32-true"},
        )
