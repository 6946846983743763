"""A module given in Python stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import nn

import dovetail
from dovetail.run.network import network_for
from dovetail.run.options import PretrainOptions
from tests.data.photos import folder_of

TINY = {"hidden": 16, "dim": 8, "prototypes": 6, "decoder_grid": 8}


class Own(nn.Module):
    """An encoder and a decoder of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 2, 1))
        self.decoder = nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(pixels))


def state_of(module: nn.Module) -> tuple[Any, ...]:
    """Return what training could change: weights and buffers, flags, modes, and hooks of every kind."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return (
        {name: value.clone() for name, value in module.state_dict().items()},
        {name: (value.requires_grad, value.grad is None, id(value)) for name, value in module.named_parameters()},
        {name: (part.training, id(part)) for name, part in module.named_modules()},
        {name: [list(getattr(part, kind)) for kind in hooks] for name, part in module.named_modules()},
        {name: "forward" in vars(part) for name, part in module.named_modules()},
    )


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: smp.Unet("tu-test_resnet", encoder_weights=None), {}),
        (lambda: timm.create_model("test_resnet", num_classes=0), {"method": "slotcon"}),
        (lambda: torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None), {}),
        (Own, {"encoder": "encoder", "decoder": "decoder"}),
    ],
    ids=["smp", "timm", "torchvision", "own"],
)
def test_a_module_given_in_python_is_not_changed(
    make: Callable[[], nn.Module], options: dict[str, Any], tmp_path: Path
) -> None:
    module = make().eval()
    next(module.parameters()).requires_grad_(False)
    module.register_forward_hook(lambda *_: None)
    before = state_of(module)
    dovetail.pretrain(
        data=folder_of(tmp_path / "photos", 8),
        model=module,
        out=tmp_path / "run",
        image_size=64,
        batch_size=4,
        max_steps=2,
        workers=0,
        precision="32-true",
        report_every_minutes=0.0,
        **{"method": "decon-sl", "recipe": TINY, **options}
        | ({"recipe": {name: TINY[name] for name in TINY if name != "decoder_grid"}} if "method" in options else {}),
    )
    after = state_of(module)
    assert after[1:] == before[1:]
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())


def test_a_module_that_cannot_be_copied_gets_a_sentence() -> None:
    module = Own()
    module.scale = torch.ones(3, requires_grad=True) * 2  # no leaf, which torch does not copy
    with pytest.raises(dovetail.DovetailError, match="The Own cannot be copied"):
        network_for(PretrainOptions(model=module, encoder="encoder", decoder="decoder"))


class Adapter(nn.Module):
    """A low-rank adapter beside a frozen convolution, as libraries of adapters make it."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.down = nn.Conv2d(base.in_channels, 2, 1, bias=False)
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        base: torch.Tensor = self.base_layer(pixels)
        return base + self.up(self.down(pixels))


def test_frozen_weights_and_adapters_train_as_the_caller_set_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Own()
    module.encoder[0].requires_grad_(False)
    module.decoder = nn.Sequential(Adapter(nn.Conv2d(8, 8, 1)), nn.Conv2d(8, 4, 3, 1, 1, bias=False))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    dovetail.pretrain(
        data=folder_of(tmp_path / "photos", 8),
        model=module,
        encoder="encoder",
        decoder="decoder",
        out=tmp_path / "run",
        image_size=64,
        batch_size=4,
        max_steps=2,
        workers=0,
        report_every_minutes=0.0,
        recipe=TINY,
    )
    assert "frozen            4 of 11 parameters have requires_grad=False" in capsys.readouterr().out
    report = dovetail.load_into(module, tmp_path / "run")
    assert not report.fresh
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    parameters = {name for name, value in module.named_parameters() if value.requires_grad}
    assert moved & dict(module.named_parameters()).keys() == parameters


def test_the_path_of_a_module_is_imported_when_it_is_typed() -> None:
    parts = {"encoder": "encoder", "decoder": "decoder", "model": "tests.run.test_network:Own"}
    assert type(network_for(PretrainOptions.given(parts)).model).__name__ == "Own"
    with pytest.raises(
        dovetail.DovetailError, match="Python code, which a file may not select; specify it with --model"
    ):
        network_for(PretrainOptions.given(parts, from_file=["model"]))
    for path, sentence in (
        ("tests.run.test_network:Owm", "did you mean 'Own'"),
        ("tests.run.nowhere:Own", "no module 'tests.run.nowhere' for the model"),
        ("tests.run.test_network:TINY", "returned a dict; specify a torch"),
    ):
        with pytest.raises(dovetail.DovetailError, match=sentence):
            network_for(PretrainOptions.given(parts | {"model": path}))
