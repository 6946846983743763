"""Starting from files: of Dovetail, of other programs, and those that do not fit."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.networks.network import Network
from dovetail.weights.exported import MatchReport, save_exported
from dovetail.weights.start import begin_from


def twos(module: nn.Module, value: float = 2.0) -> dict[str, Tensor]:
    """Return a module's tensors, all of one value."""
    return {name: torch.full_like(one, value) for name, one in module.state_dict().items()}


def mark(network: Network) -> None:
    """Fill every tensor with a value that no file has."""
    with torch.no_grad():
        for value in network.model.state_dict().values():
            value.fill_(9)


def part(network: Network, *, decoder: bool) -> dict[str, Tensor]:
    """Return the tensors of a network's decoder, or those of its encoder."""
    state = network.model.state_dict()
    return {name: value for name, value in state.items() if name.startswith("decoder.") is decoder}


@functools.cache
def built(name: str) -> Network:
    """Return a network that is built once for all tests that fill all of its encoder."""
    return build_network(name, image_size=64)


def begun(network: Network, init: Path | str) -> MatchReport:
    report = begin_from(network, init)
    assert report is not None
    return report


def test_nothing_and_a_missing_file(tmp_path: Path) -> None:
    network = build_network("timm/test_resnet", image_size=64)
    assert begin_from(network, None) is None
    with pytest.raises(DovetailError, match=r"Found no weights at .*none\.safetensors"):
        begin_from(network, tmp_path / "none.safetensors")
    with pytest.raises(DovetailError, match=r"The file or folder imagnet does not exist .*did you mean 'imagenet'\?"):
        begin_from(network, "imagnet")
    (tmp_path / "table.csv").write_text("1")
    with pytest.raises(DovetailError, match=r"table\.csv has an unsupported suffix; expected .*\.safetensors, \.pth"):
        begin_from(network, tmp_path / "table.csv")


def test_a_file_of_the_whole_model(tmp_path: Path) -> None:
    network = build_network("timm/test_resnet+fcn", image_size=64)
    save_file(twos(network.model), tmp_path / "all.safetensors")
    report = begun(network, tmp_path / "all.safetensors")
    assert len(report.matched) == len(network.model.state_dict())
    assert all(bool((value == 2).all()) for value in network.model.state_dict().values())


def test_part_of_an_encoder_is_refused(tmp_path: Path) -> None:
    network = build_network("timm/test_resnet+fcn", image_size=64)
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    weights = twos(network.model)
    less = {name: value for name, value in weights.items() if name != "encoder.conv1.0.weight"}
    assert len(less) < len(weights)
    save_file(less, tmp_path / "less.safetensors")
    with pytest.raises(DovetailError, match=r"1 missing: encoder\.conv1\.0\.weight"):
        begin_from(network, tmp_path / "less.safetensors")
    save_file(weights | {"encoder.conv1.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DovetailError, match="with another shape"):
        begin_from(network, tmp_path / "other.safetensors")
    save_file(weights | {"encoder.layer5.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(DovetailError, match=r"1 unexpected: encoder\.layer5\.weight"):
        begin_from(network, tmp_path / "more.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in network.model.state_dict().items())


def test_a_deeper_network_is_refused(tmp_path: Path) -> None:
    """Every tensor of a shallow ViT is in a deeper one's, which is another network all the same."""
    deep = timm.create_model("test_vit", depth=8)
    torch.save(deep.state_dict(), tmp_path / "deep.pth")
    network = build_network("timm/test_vit", image_size=32)
    with pytest.raises(DovetailError, match=r"unexpected: blocks\.\d\.norm1\.weight"):
        begin_from(network, tmp_path / "deep.pth")


def test_a_classifier_is_left_over_and_said(tmp_path: Path) -> None:
    network = build_network("timm/test_resnet+fcn", image_size=64)
    heads = {"encoder.fc.weight": torch.zeros(3, 4), "head.bias": torch.zeros(3)}
    save_file(twos(network.model) | heads, tmp_path / "head.safetensors")
    report = begun(network, tmp_path / "head.safetensors")
    assert set(report.left_over) == set(heads)
    assert "2 unused in the file: " in str(report)


# What was refused before: each is now loaded, and said.


def test_an_encoder_starts_a_whole_model_with_a_fresh_decoder(tmp_path: Path) -> None:
    network = build_network("timm/resnet18+fpn", image_size=64)
    save_file(twos(torchvision.models.resnet18()), tmp_path / "resnet.safetensors")
    decoder = {name: value.clone() for name, value in part(network, decoder=True).items()}
    report = begun(network, tmp_path / "resnet.safetensors")
    assert all(bool((value == 2).all()) for value in part(network, decoder=False).values())
    assert all(torch.equal(value, decoder[name]) for name, value in part(network, decoder=True).items())
    assert {name for name in report.fresh if not name.endswith("tracked")} == {
        name for name in decoder if not name.endswith("tracked")
    }
    assert set(report.left_over) == {"fc.weight", "fc.bias"}
    assert f"{len(report.fresh)} kept as initialised: decoder." in str(report)


@pytest.mark.parametrize("place", ["model.safetensors", ""])
def test_an_encoder_run_starts_a_whole_model(tmp_path: Path, place: str) -> None:
    run = build_network("timm/test_resnet", image_size=64)
    run.model.load_state_dict(twos(run.model))
    save_exported(run, tmp_path, method="moco-v2", extra={})
    network = build_network("timm/test_resnet+fpn", image_size=64)
    report = begun(network, tmp_path / place)
    assert all(bool((value == 2).all()) for value in part(network, decoder=False).values())
    assert all(name.startswith("decoder.") for name in report.fresh)
    assert report.fresh


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".pth.tar"])
def test_files_of_torch(tmp_path: Path, suffix: str) -> None:
    network = build_network("timm/test_resnet+fpn", image_size=64)
    torch.save(twos(network.model), tmp_path / f"weights{suffix}")
    assert len(begun(network, tmp_path / f"weights{suffix}").matched) == len(network.model.state_dict())


@pytest.mark.parametrize("size", [64, 160])
def test_positions_are_resampled(tmp_path: Path, size: int) -> None:
    run = build_network("timm/test_vit", image_size=96)
    with torch.no_grad():
        run.model.pos_embed.normal_(std=0.1)
    save_exported(run, tmp_path, method="dino", extra={})
    network = build_network("timm/test_vit", image_size=size)
    report = begun(network, tmp_path)
    assert report.resampled == ("pos_embed",)
    assert "1 resampled to another grid: pos_embed" in str(report)
    found, given = network.model.pos_embed, run.model.pos_embed
    grid = size // 16
    assert found.shape[1] == grid**2 + 1
    torch.testing.assert_close(found[:, 0], given[:, 0])
    expected = timm.layers.resample_abs_pos_embed(given, [grid, grid])
    torch.testing.assert_close(found, expected)


def test_norms_without_counters(tmp_path: Path) -> None:
    network = build_network("timm/test_resnet+fpn", image_size=64)
    weights = {name: value for name, value in twos(network.model).items() if not name.endswith("tracked")}
    save_file(weights, tmp_path / "frozen.safetensors")
    report = begun(network, tmp_path / "frozen.safetensors")
    assert set(report.matched) == set(weights)
    assert not report.missing


PREFIXES = [
    "module.",
    "_orig_mod.",
    "backbone.",
    "encoder.",
    "model.",
    "student.backbone.",
    "0.body.",
    "module.encoder_q.",
]


@pytest.mark.parametrize(("prefix", "encoder"), [*((one, "test_resnet") for one in PREFIXES), ("module.", "resnet18")])
def test_prefixes_of_wrappers(tmp_path: Path, prefix: str, encoder: str) -> None:
    theirs = torchvision.models.resnet18() if encoder == "resnet18" else timm.create_model("test_resnet")
    names = twos(theirs)
    torch.save({prefix + name: value for name, value in names.items()}, tmp_path / "a.pth")
    smp_name = encoder if encoder == "resnet18" else f"tu-{encoder}"
    for name in (f"timm/{encoder}", f"timm/{encoder}+fpn", f"smp/unet/{smp_name}"):
        network = built(name)
        mark(network)
        report = begun(network, tmp_path / "a.pth")
        assert len(report.matched) == len(names) - 2  # those of the classifier
        assert {one.removeprefix(network.encoder_prefix).removeprefix("model.") for one in report.matched} <= set(names)
        assert all(bool((network.model.state_dict()[one] == 2).all()) for one in report.matched)
        own = "encoder.", "model." if name.startswith("smp/unet/tu-") else ""
        assert prefix in own or repr(prefix) in str(report)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_channels(tmp_path: Path, channels: int) -> None:
    weights = timm.create_model("test_resnet").state_dict()
    torch.save(weights, tmp_path / "rgb.pth")
    network = build_network("timm/test_resnet+fpn", image_size=64, in_channels=channels)
    report = begun(network, tmp_path / "rgb.pth")
    assert report.channels == ("encoder.conv1.0.weight",)
    assert "1 adapted to another number of channels: encoder.conv1.0.weight" in str(report)
    # Channels that are all alike are answered as before, of whatever number they are.
    rgb, found = weights["conv1.0.weight"], network.model.encoder.conv1[0].weight
    if channels == 1:
        torch.testing.assert_close(found.sum(1), rgb.sum(1))
    expected = torch.stack([rgb[:, index % 3] for index in range(channels)], 1) * (3 / channels)
    torch.testing.assert_close(found, expected if channels > 1 else rgb.sum(1, keepdim=True))


def test_half_precision(tmp_path: Path) -> None:
    resnet = torchvision.models.resnet18()
    torch.save(resnet.half().state_dict(), tmp_path / "half.pth")
    network = build_network("timm/resnet18", image_size=64)
    report = begun(network, tmp_path / "half.pth")
    assert network.model.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(network.model.conv1.weight, resnet.conv1.weight.float())
    assert "stored as float16" in str(report)


# Which of several networks in one file.


@pytest.mark.parametrize(
    ("chosen", "other"),
    [
        ("teacher.backbone.", "student.module.backbone."),
        ("state_dict_ema.", "state_dict."),
        ("model_ema.", "model."),
        ("state_dict.module.encoder_q.", "state_dict.module.encoder_k."),
        ("state_dict.module.base_encoder.", "state_dict.module.momentum_encoder."),
        ("state_dict.backbone.", "state_dict.momentum_backbone."),
        ("state_dict.teacher_backbone.", "state_dict.student_backbone."),
        ("state_dict.backbone.", "state_dict.backbone_momentum."),
    ],
)
def test_of_several_copies_the_published_one_is_taken(tmp_path: Path, chosen: str, other: str) -> None:
    resnet = timm.create_model("test_resnet")
    names = {chosen + name: value for name, value in twos(resnet).items()}
    names |= {other + name: value for name, value in twos(resnet, 3.0).items()}
    nested: dict[str, dict[str, Tensor]] = {}
    for name, value in names.items():
        outer, inner = name.split(".", 1)
        nested.setdefault(outer, {})[inner] = value
    torch.save({**nested, "epoch": 3, "optimizer": {"state": {0: {"step": torch.zeros(3)}}}}, tmp_path / "a.pth")
    network = built("timm/test_resnet+fpn")
    mark(network)
    begin_from(network, tmp_path / "a.pth")
    assert all(bool((value == 2).all()) for value in network.model.encoder.state_dict().values())


def test_slotcons_encoder_is_that_of_the_keys(tmp_path: Path) -> None:
    resnet = torchvision.models.resnet18()
    names = {f"module.encoder_q.{name}": value for name, value in twos(resnet, 3.0).items()}
    names |= {f"module.encoder_k.{name}": value for name, value in twos(resnet).items()}
    names |= {"module.grouping_q.slot_embed.weight": torch.zeros(4, 8)}
    torch.save({"model": names}, tmp_path / "slotcon.pth")
    network = build_network("timm/resnet18", image_size=64)
    report = begun(network, tmp_path / "slotcon.pth")
    assert float(network.model.conv1.weight.detach().mean()) == 2
    assert "model.module.grouping_q.slot_embed.weight" in report.left_over


def test_nothing_in_common_names_the_nearest(tmp_path: Path) -> None:
    torch.save({"trunk.layer1.convolution.weight": torch.zeros(3), "trunk.out": torch.zeros(2)}, tmp_path / "a.pth")
    network = build_network("timm/test_resnet+fpn", image_size=64)
    with pytest.raises(DovetailError) as raised:
        begin_from(network, tmp_path / "a.pth")
    text = str(raised.value)
    assert "No tensor in" in text
    assert "the most similar names are " in text
    assert "trunk.layer1.convolution.weight in the file and " in text
    assert text.count(" in the model") == 2, "the file has two names"
    assert "\n" not in text


def test_a_file_written_here_is_the_same_in_both_formats(tmp_path: Path) -> None:
    network = build_network("timm/test_vit+fpn", image_size=96)
    save_exported(network, tmp_path, method="dino", extra={})
    torch.save({"state_dict": load_file(tmp_path / "model.safetensors")}, tmp_path / "same.pth")
    first, second = (build_network("timm/test_vit+fpn", image_size=96) for _ in range(2))
    begin_from(first, tmp_path)
    begin_from(second, tmp_path / "same.pth")
    state = second.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.model.state_dict().items())
