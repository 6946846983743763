"""BatchNorm of all processes: what one process can show; two are in `test_ranks`."""

from __future__ import annotations

import logging

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn

from dovetail.heads import masked_mlp
from dovetail.heads.masked_mlp import statistics
from dovetail.train import batch_norm
from dovetail.train.batch_norm import JointBatchNorm, JointBatchNormAct, joint_batch_norm
from dovetail.train.shuffle import has_own_statistics


class Odd(nn.BatchNorm2d):
    """A BatchNorm with a forward pass of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


def network() -> nn.Sequential:
    shared = nn.BatchNorm1d(4)
    return nn.Sequential(
        nn.Conv2d(3, 4, 1),
        BatchNormAct2d(4),
        nn.Sequential(nn.BatchNorm2d(4, affine=False)),
        nn.Flatten(2),
        shared,
        shared,
    )


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Two processes, of which this is the first; the list takes the other one's counts, means and variances."""
    other: list[Tensor] = []
    monkeypatch.setattr(batch_norm, "world_size", lambda: 2)
    monkeypatch.setattr(masked_mlp, "gather_with_gradient", lambda own: torch.cat([own, *other]))
    return other


def statistics_of(values: Tensor) -> Tensor:
    """Return what a process with these values [B, C, ...] tells the others."""
    lines = values.transpose(0, 1).flatten(1)
    return torch.cat([torch.tensor([lines.shape[1]]), lines.mean(1), lines.var(1, correction=0)])[None].to(values.dtype)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 2, 2)])
@pytest.mark.parametrize("share", [1, 2, 6])
def test_the_first_of_two_processes_normalises_as_one_with_all(
    shape: tuple[int, ...], share: int, ranks: list[Tensor]
) -> None:
    values = torch.randn(shape, dtype=torch.float64) * 3 + 100
    if share < 6:
        ranks.append(statistics_of(values[share:]))
    plain = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](3).double()
    joint = JointBatchNorm(3).double()
    for layer in (plain, joint):
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(joint(values[:share]), plain(values)[:share])
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(joint.state_dict()[name], value)
    torch.testing.assert_close(joint.eval()(values), plain.eval()(values))


def test_a_process_without_rows_takes_part(ranks: list[Tensor]) -> None:
    others = torch.randn(5, 3)
    ranks.append(statistics_of(others))
    mean, variance, count = statistics(torch.empty(0, 3))
    torch.testing.assert_close(mean, others.mean(0))
    torch.testing.assert_close(variance, others.var(0, correction=0))
    assert count == 5
    assert JointBatchNorm(3)(torch.empty(0, 3)).shape == (0, 3)


def test_layers_are_replaced_for_a_while(ranks: list[Tensor]) -> None:
    module = network()
    before = list(module.modules())
    state = {name: value.clone() for name, value in module.state_dict().items()}
    with joint_batch_norm(module, on_gpu=False):
        kinds = [type(layer) for layer in module.modules()]
        assert kinds.count(JointBatchNorm) == 2  # one of them in two places
        assert kinds.count(JointBatchNormAct) == 1
        assert module.state_dict().keys() == state.keys()
        assert list(module.parameters()) == [
            one for layer in before for one in layer._parameters.values() if one is not None
        ]
        module(torch.randn(4, 3, 2, 2)).sum().backward()
        module.double().eval()
    assert list(module.modules()) == before
    assert not any(layer.training for layer in module.modules() if layer is not module)
    assert all(value.dtype in (torch.float64, torch.int64) for value in module.state_dict().values())
    assert not torch.equal(module.state_dict()["1.running_mean"].float(), state["1.running_mean"])


def test_activations_inside_of_layers_stay(ranks: list[Tensor]) -> None:
    """What torch's own conversion loses."""
    module = nn.Sequential(BatchNormAct2d(3))
    with joint_batch_norm(module, on_gpu=False):
        assert module(torch.randn(4, 3, 2, 2)).min() == 0
    with joint_batch_norm(module, on_gpu=True):
        assert isinstance(module[0], SyncBatchNormAct)
        assert isinstance(module[0].act, nn.ReLU)


def test_gpus_get_torchs_layers() -> None:
    module = network()
    with joint_batch_norm(module, on_gpu=True):
        assert [type(layer) for layer in module.modules()].count(nn.SyncBatchNorm) == 2


def test_what_cannot_be_joined_is_named(caplog: pytest.LogCaptureFixture) -> None:
    module = nn.Sequential(Odd(3))
    with caplog.at_level(logging.WARNING), joint_batch_norm(module, on_gpu=False):
        assert isinstance(module[0], Odd)
    assert "Odd is not synchronised" in caplog.text


def test_images_are_shuffled_among_processes_only_where_statistics_are_their_own() -> None:
    module = network()
    assert any(map(has_own_statistics, module.modules()))
    for on_gpu in (False, True):
        with joint_batch_norm(module, on_gpu=on_gpu):
            assert not any(map(has_own_statistics, module.modules()))
