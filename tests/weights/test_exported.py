"""Export, match reports, loading, other programs' formats."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.networks.network import Network
from dovetail.weights.exported import load, read_exported, save_exported
from dovetail.weights.matching import load_into
from tests.networks.test_own import Ushaped

PARAMETERS = {"weight", "bias", "running_mean", "running_var"}


@functools.lru_cache(maxsize=4)
def pruned(name: str, taps: tuple[str, ...]) -> Network:
    """Return a network that is built once for all tests that export it; none of them changes it."""
    network = build_network(name, image_size=64)
    network.prune(taps)
    return network


def export(folder: Path, name: str = "smp/unet/resnet18", *, taps: tuple[str, ...] = ("c5", "p0")) -> Network:
    network = pruned(name, taps)
    save_exported(network, folder, method="slotcon", extra={"epochs": 3}, mean=(0.5,) * 3, std=(0.25,) * 3)
    return network


def mark(module: nn.Module, value: float) -> nn.Module:
    """Fill every tensor, so that it can be told which were loaded."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(value)
    return module


def still(module: nn.Module, value: float) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if bool((tensor == value).all())}


def test_the_folder(tmp_path: Path) -> None:
    network = export(tmp_path)
    state = network.model.state_dict()
    whole = load_file(tmp_path / "model.safetensors")
    assert whole.keys() == state.keys()
    assert all(torch.equal(whole[name], value) for name, value in state.items())
    assert load_file(tmp_path / "encoder.safetensors").keys() == network.model.encoder.state_dict().keys()
    assert load_file(tmp_path / "decoder.safetensors").keys() == network.model.decoder.state_dict().keys()
    info = json.loads((tmp_path / "model.json").read_text())
    assert info["constructor"] == "smp.Unet(encoder_name='resnet18', encoder_weights=None, in_channels=3)"
    assert info["untrained"] == ["segmentation_head.0.weight", "segmentation_head.0.bias"]
    assert (info["method"], info["extra"]) == ("slotcon", {"epochs": 3})
    assert info["normalisation"] == {"mean": [0.5] * 3, "std": [0.25] * 3}
    assert (info["encoder_prefix"], info["decoder_prefixes"]) == ("encoder.", ["decoder."])
    assert info["versions"]["torch"] == torch.__version__


def test_unreached_branches_are_listed_with_their_buffers(tmp_path: Path) -> None:
    export(tmp_path, "timm/resnet18+fpn", taps=("p4",))
    untrained = json.loads((tmp_path / "model.json").read_text())["untrained"]
    tensors = ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")
    assert set(untrained) == {
        *(f"decoder.inner_blocks.{level}.{tensor}" for level in (0, 1) for tensor in tensors),
        *(f"decoder.layer_blocks.{level}.{tensor}" for level in (0, 1, 3) for tensor in tensors),
    }


class Tied(nn.Module):
    """Weights shared between parts, not contiguous, of half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 3, 2, stride=2, bias=False).to(memory_format=torch.channels_last)
        self.twin = self.encoder

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        encoded: torch.Tensor = self.encoder(pixels)
        return encoded


def test_shared_strided_and_half_precision_tensors(tmp_path: Path) -> None:
    model = Tied().bfloat16()
    network = build_network(model, encoder="encoder", image_size=32)
    save_exported(network, tmp_path, method="simsiam", extra={})
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == {"encoder.weight", "twin.weight"}
    assert weights["encoder.weight"].dtype == torch.float32
    assert torch.equal(weights["encoder.weight"], model.encoder.weight.detach().float())


@pytest.mark.parametrize("place", ["", "model.safetensors", "run"])
def test_loading_into_the_same_model(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "run" / "exported" if place == "run" else tmp_path
    network = export(folder)
    target = mark(smp.Unet("resnet18", encoder_weights=None, classes=7), 9)
    report = load_into(target, tmp_path / place)
    assert not report.missing + report.unexpected
    assert report.fresh == ("segmentation_head.0.weight", "segmentation_head.0.bias")
    assert still(target, 9) == set(report.fresh)
    for name in report.matched:
        assert torch.equal(target.state_dict()[name], network.model.state_dict()[name])
    text = str(report)
    assert text.startswith(f"{len(report.matched)} tensors loaded\n2 kept as initialised: segmentation_head.0.weight")


def test_unreached_branches_stay_as_they_are(tmp_path: Path) -> None:
    export(tmp_path, "timm/resnet18+fpn", taps=("p2",))
    target = mark(build_network("timm/resnet18+fpn", image_size=64).model, 9)
    report = load_into(target, tmp_path)
    assert {name.split(".")[2] for name in report.fresh} == {"1", "2", "3"}
    assert still(target, 9) == set(report.fresh)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    export(tmp_path)
    other = smp.Unet("resnet18", encoder_weights=None, decoder_channels=(256, 128, 64, 32, 8))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(
        DovetailError, match=r"another shape: decoder\.blocks\.4\.conv1\.0\.weight \(.* got \[16, 32, 3, 3\]"
    ):
        load_into(other, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items()), "strict must not write"
    report = load_into(other, tmp_path, strict=False)
    wrong = {one.name: (one.found, one.wanted) for one in report.mismatched}
    assert wrong["decoder.blocks.4.conv1.0.weight"] == ((16, 32, 3, 3), (8, 32, 3, 3))
    assert all(name.startswith("decoder.blocks.4.") for name in wrong)

    attentive = smp.Unet("resnet18", encoder_weights=None, decoder_attention_type="scse")
    report = load_into(attentive, tmp_path, strict=False)
    assert report.missing
    assert all("attention" in name for name in report.missing)
    with pytest.raises(DovetailError, match=r"\d+ missing: decoder\.blocks"):
        load_into(attentive, tmp_path)

    export(tmp_path / "attentive_twin")
    weights = load_file(tmp_path / "model.safetensors") | {"decoder.extra": torch.zeros(1)}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(DovetailError, match=r"1 unexpected: decoder\.extra"):
        load_into(smp.Unet("resnet18", encoder_weights=None), tmp_path)
    assert load_into(smp.Unet("resnet18", encoder_weights=None), tmp_path, strict=False).unexpected == (
        "decoder.extra",
    )


@pytest.mark.parametrize("strict", [True, False])
def test_nothing_in_common_always_raises(tmp_path: Path, strict: bool) -> None:
    export(tmp_path)
    with pytest.raises(DovetailError, match="No tensor in"):
        load_into(timm.create_model("convnext_atto"), tmp_path, strict=strict)
    with pytest.raises(DovetailError, match="No tensor in"):
        load_into(nn.Linear(3, 4), tmp_path, strict=strict)


@functools.cache
def targets() -> dict[str, tuple[nn.Module, str]]:
    """Return models with a ResNet-18, and where it is in them; tests fill them anew."""
    detector = torchvision.models.detection.FasterRCNN(
        resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d), num_classes=4
    )
    return {
        "smp": (smp.FPN("resnet18", encoder_weights=None), "encoder."),
        "smp over timm": (smp.Unet("tu-resnet18", encoder_weights=None), "encoder.model."),
        "timm": (timm.create_model("resnet18", num_classes=5), ""),
        "torchvision": (torchvision.models.resnet18(weights=None), ""),
        "detector": (detector, "backbone.body."),
        "pyramid": (build_network("timm/resnet18+fpn", image_size=64).model, "encoder."),
    }


@pytest.mark.parametrize("source", ["smp/unet/resnet18", "timm/resnet18", "smp/fpn/tu-resnet18"])
def test_encoders_move_between_libraries(tmp_path: Path, source: str) -> None:
    network = export(tmp_path, source, taps=("c5",))
    origin = network.model.state_dict()
    for place, (model, prefix) in targets().items():
        mark(model, 9)
        report = load_into(model, tmp_path, part="encoder")
        assert len(report.matched) == 120, place
        assert not report.missing + report.unexpected + report.mismatched
        for name in report.matched:
            local = name.removeprefix(prefix)
            assert torch.equal(model.state_dict()[name], origin[network.encoder_prefix + local])
        assert still(model, 9) == set(model.state_dict()) - set(report.matched)


def test_the_file_of_the_encoder_alone(tmp_path: Path) -> None:
    export(tmp_path)
    assert len(load_into(timm.create_model("resnet18"), tmp_path / "encoder.safetensors").matched) == 120
    unet = smp.Unet("resnet18", encoder_weights=None)
    assert len(load_into(unet, tmp_path / "decoder.safetensors", part="decoder").matched) == 60
    with pytest.raises(DovetailError, match="100 missing"):
        load_into(unet, tmp_path / "decoder.safetensors")


@pytest.mark.parametrize("options", [{}, {"num_classes": 0}])
def test_a_bare_encoder_is_told_how_the_encoder_alone_is_loaded(options: dict[str, int], tmp_path: Path) -> None:
    export(tmp_path, "timm/resnet18+fpn-bias", taps=("c5", "p2", "p3", "p4", "p5"))
    model = timm.create_model("resnet18", **options)
    with pytest.raises(DovetailError, match=r"unexpected.*; use .*, load the encoder alone with part='encoder', or "):
        load_into(model, tmp_path)
    assert len(load_into(model, tmp_path, part="encoder").matched) == 120
    other = smp.Unet("resnet34", encoder_weights=None)  # whose encoder does not fit, either
    with pytest.raises(DovetailError, match="use the model that was pre-trained, or load with strict=False"):
        load_into(other, tmp_path)


def test_pyramids_move_into_detectors(tmp_path: Path) -> None:
    network = export(tmp_path, "timm/resnet18+fpn-bias", taps=("c5", "p2", "p3", "p4", "p5"))
    detector, _ = targets()["detector"]
    report = load_into(detector, tmp_path)
    assert not report.missing + report.unexpected + report.mismatched
    assert all(name.startswith(("rpn.", "roi_heads.")) for name in report.fresh)
    origin = network.model.state_dict()["decoder.layer_blocks.0.0.weight"]
    assert torch.equal(detector.state_dict()["backbone.fpn.layer_blocks.0.0.weight"], origin)


def test_bare_files(tmp_path: Path) -> None:
    resnet = torchvision.models.resnet18(weights=None)
    weights = {name: value for name, value in resnet.state_dict().items() if not name.startswith("fc.")}
    save_file(weights, tmp_path / "resnet.safetensors")
    assert (
        len(
            load_into(
                smp.Unet("resnet18", encoder_weights=None), tmp_path / "resnet.safetensors", part="encoder"
            ).matched
        )
        == 120
    )
    own = nn.Sequential(nn.Conv2d(3, 4, 1))
    save_file(own.state_dict(), tmp_path / "own.safetensors")
    assert load_into(own, tmp_path / "own.safetensors").matched == ("0.weight", "0.bias")
    with pytest.raises(DovetailError, match="was not found"):
        load_into(own, tmp_path / "own.safetensors", part="encoder")
    with pytest.raises(DovetailError, match="has no constructor call"):
        load(tmp_path / "own.safetensors")


def test_own_modules_load_by_their_parts(tmp_path: Path) -> None:
    model = Tied()
    save_exported(build_network(model, encoder="encoder", image_size=32), tmp_path, method="moco", extra={})
    target = Tied()
    assert load_into(target, tmp_path, part="encoder").matched == ("encoder.weight",)
    assert torch.equal(target.encoder.weight, model.encoder.weight)
    with pytest.raises(DovetailError, match="load the weights with load_into"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "smp/unet/resnet18",
        "timm/resnet18",
        "timm/resnet18+fcn",
        "timm/vit_tiny_patch16_224",
        "timm/vit_tiny_patch16_224+fpn",
    ],
)
def test_load_builds_the_model(tmp_path: Path, name: str) -> None:
    network = export(tmp_path, name, taps=("c4",))
    model = load(tmp_path)
    assert type(model) is type(network.model)
    state = network.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn", "deeplabv3_resnet50"]
)
def test_load_builds_torchvisions_models(tmp_path: Path, name: str) -> None:
    network = export(tmp_path, f"torchvision/{name}", taps=("c2", "p3"))
    assert type(load(tmp_path)) is type(network.model)


def test_load_runs_no_code_of_the_file(tmp_path: Path) -> None:
    export(tmp_path)
    info = json.loads((tmp_path / "model.json").read_text())
    for call in ("os.system('true')", "smp.losses.DiceLoss('binary')", "dovetail.networks.decoders.timm('x')", "1 + 1"):
        (tmp_path / "model.json").write_text(json.dumps({**info, "constructor": call}))
        with pytest.raises(DovetailError, match="cannot be built from its name"):
            load(tmp_path)


def test_another_version_of_the_library(tmp_path: Path) -> None:
    export(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("encoder.conv1.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(DovetailError, match="installed version of its library"):
        load(tmp_path)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match=r"model\.safetensors"):
        read_exported(tmp_path)
    with pytest.raises(DovetailError, match="nowhere does not exist"):
        read_exported(tmp_path / "nowhere")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(DovetailError, match=r"is not a \.safetensors file"):
        read_exported(tmp_path / "text.safetensors")


def test_all_that_was_trained_of_an_own_module_is_loaded(tmp_path: Path) -> None:
    model = Ushaped()
    network = build_network(model, encoder="deep", decoder="fuse", image_size=32)
    network.prune(["c2", "p1"])
    save_exported(network, tmp_path, method="decon-sl", extra={})
    target = Ushaped()
    report = load_into(target, tmp_path)
    assert {name.partition(".")[0] for name in report.fresh} == {"head"}
    assert {name.partition(".")[0] for name in report.matched} == {"stem", "deep", "skip", "fuse"}
    assert len(report.matched) + len(report.fresh) == len(target.state_dict())
    assert torch.equal(target.skip[0].weight, model.skip[0].weight)
    wider = Ushaped()
    wider.skip[0] = torch.nn.Conv2d(8, 16, 3)
    with pytest.raises(DovetailError, match=r"another shape: skip.0.weight"):
        load_into(wider, tmp_path)
    assert load_into(Ushaped(), tmp_path, part="encoder").matched == (
        "deep.0.weight",
        "deep.0.bias",
        *(f"deep.1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    )
