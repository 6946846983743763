"""The pixel probe: what a linear classifier can find it finds, and what is not there it does not."""

from __future__ import annotations

import pytest
import torch
from benchmarks.probe import (
    CELL_PX,
    ProbeData,
    as_map,
    balanced_accuracy,
    fit_predict,
    labels_of,
    probe,
    probe_groups,
    renew_statistics,
)
from torch import Tensor, nn

from dovetail.downstream.labels.labelled import InMemory, Labelled
from dovetail.networks.build import build_network

SIDE = 64


def blobs(rows: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return rows [N, C] around one corner for each class, and their classes."""
    labels = torch.randint(classes, (rows,), generator=generator)
    return torch.eye(classes)[labels] * 3 + 0.3 * torch.randn(rows, classes, generator=generator), labels


def test_separable_classes_are_told_apart_and_noise_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    (rows, labels), (held_out, truth) = blobs(400, 4, generator), blobs(400, 4, generator)
    assert balanced_accuracy(fit_predict(rows, labels, held_out, classes=4), truth, classes=4) > 0.98
    noise, other = torch.randn(400, 4, generator=generator), torch.randn(400, 4, generator=generator)
    assert balanced_accuracy(fit_predict(noise, labels, other, classes=4), truth, classes=4) < 0.35


def test_scale_and_offset_of_features_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    (rows, labels), (held_out, _) = blobs(200, 3, generator), blobs(200, 3, generator)
    scale, offset = torch.tensor([1e-3, 1.0, 1e3]), torch.tensor([5.0, -2.0, 70.0])
    expected = fit_predict(rows, labels, held_out, classes=3)
    assert torch.equal(fit_predict(rows * scale + offset, labels, held_out * scale + offset, classes=3), expected)


def test_accuracy_counts_every_class_alike() -> None:
    truth = torch.tensor([0] * 98 + [1, 2])
    assert balanced_accuracy(torch.zeros(100, dtype=torch.long), truth, classes=4) == pytest.approx(1 / 3)


def test_constant_features_give_chance() -> None:
    labels = torch.arange(30) % 3
    predicted = fit_predict(torch.ones(30, 5), labels, torch.ones(30, 5), classes=3)
    assert balanced_accuracy(predicted, labels, classes=3) == pytest.approx(1 / 3)


def striped(count: int) -> InMemory:
    """Return images whose class is told by brightness, in two halves."""
    mask = (torch.arange(SIDE) >= SIDE // 2).long().expand(SIDE, SIDE)
    image = (40 + 150 * mask).to(torch.uint8).expand(3, SIDE, SIDE).contiguous()
    flipped = Labelled(image.flip(2).contiguous(), mask.flip(1).contiguous())
    return InMemory([Labelled(image, mask.contiguous()) if index % 2 else flipped for index in range(count)])


def test_labels_are_those_of_the_cells_centres() -> None:
    (left, right) = labels_of(striped(2)).view(2, SIDE // CELL_PX, SIDE // CELL_PX)
    assert torch.equal(left.flip(1), right)
    assert torch.equal(right[0], (torch.arange(SIDE // CELL_PX) >= SIDE // CELL_PX // 2).long())


@pytest.mark.parametrize("model", ["timm/test_resnet+fpn(channels=16)", "timm/test_vit+fpn(channels=16)"])
def test_parts_of_a_network_are_scored_apart(model: str) -> None:
    torch.manual_seed(0)
    network = build_network(model, image_size=SIDE)
    groups = probe_groups(network)
    assert set(groups) == {"encoder", "decoder"}
    assert groups["decoder"] == ["p2", "p3", "p4", "p5"]
    scores = probe(network, ProbeData(striped(6), striped(4), 2), groups)
    assert scores["decoder"] > 0.8
    assert all(0 <= score <= 1 for score in scores.values())


def test_statistics_are_renewed_and_the_momentum_is_kept() -> None:
    network = build_network("timm/test_resnet+fpn(channels=16)", image_size=SIDE)
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.running_mean is not None
    norm.running_mean.fill_(1e6)
    momentum = norm.momentum
    renew_statistics(network, striped(4), ["c5"])
    assert norm.running_mean.abs().max() < 100
    assert norm.momentum == momentum
    assert not norm.training


def test_tokens_become_maps_row_by_row() -> None:
    tokens = torch.arange(12.0).view(1, 4, 3)
    square = as_map(tokens)
    assert square.shape == (1, 3, 2, 2)
    assert torch.equal(square[0, :, 0, 1], tokens[0, 1])
    assert torch.equal(square[0, :, 1, 0], tokens[0, 2])
