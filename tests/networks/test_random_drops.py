"""A teacher answers alike whenever it is asked."""

from __future__ import annotations

import pytest
import torch
from timm.layers.drop import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

from dovetail.networks.build import build_network
from dovetail.networks.random_drops import keep_everything


def answers(model: nn.Module, value: torch.Tensor) -> list[torch.Tensor]:
    """Return two answers of a model in training."""
    torch.manual_seed(0)
    model.train()
    return [model(value) for _ in range(2)]


@pytest.mark.parametrize("drop", [DropPath(0.5), StochasticDepth(0.5, "row"), nn.Dropout(0.5), nn.Dropout2d(0.5)])
def test_nothing_is_dropped_any_more(drop: nn.Module) -> None:
    model, value = nn.Sequential(nn.Conv2d(3, 4, 1), drop), torch.randn(16, 3, 2, 2)
    first, second = answers(model, value)
    assert not torch.equal(first, second)
    keep_everything(model)
    first, second = answers(model, value)
    assert torch.equal(first, second)
    assert torch.equal(first, model[0](value))


def test_attention_keeps_everything_too() -> None:
    model, value = nn.TransformerEncoderLayer(16, 2, dim_feedforward=8, dropout=0.5), torch.randn(3, 4, 16)
    keep_everything(model)
    first, second = answers(model, value)
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["smp/unet/efficientnet-b0", "smp/segformer/mit_b0"])
def test_the_teacher_of_a_cnn_drops_nothing(name: str) -> None:
    network = build_network(name, image_size=64)
    view, taps = network.probe_view(), ["c4"]
    view.pixels.uniform_()

    def differs() -> bool:
        network.train()
        first, second = (network(view, taps)["c4"] for _ in range(2))
        return not torch.equal(first, second)

    assert any(differs() for _ in range(5))
    network.become_teacher()
    assert not any(differs() for _ in range(5))
