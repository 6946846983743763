"""Every parameter is in one group, with its rate and its weight decay."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from dovetail.downstream.fit import parameter_groups, set_rate


@pytest.mark.parametrize(("decay_vectors", "expected"), [(False, {0.3, 0.0}), (True, {0.3})])
def test_groups_by_rate_and_decay(decay_vectors: bool, expected: set[float]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    named = list(model.named_parameters())
    scales = {name: 0.5 if name.startswith("0.") else 1.0 for name, _ in named}
    groups = parameter_groups(named, scales, lr=0.1, weight_decay=0.3, decay_vectors=decay_vectors)
    assert {group["weight_decay"] for group in groups} == expected
    assert sorted({group["lr"] for group in groups}) == [0.05, 0.1]
    placed = [id(value) for group in groups for value in group["params"]]
    assert sorted(placed) == sorted(id(value) for value in model.parameters())
    by_id = {id(value): group for group in groups for value in group["params"]}
    assert by_id[id(model[0].weight)]["lr"] == 0.05
    assert by_id[id(model[2].bias)]["weight_decay"] == (0.3 if decay_vectors else 0.0)


def test_the_share_is_of_each_groups_peak() -> None:
    layer = nn.Linear(2, 2)
    groups = parameter_groups(layer.named_parameters(), {"weight": 0.5, "bias": 1.0}, lr=0.1, weight_decay=0.0)
    optimiser = torch.optim.SGD(groups)
    for _ in range(2):  # twice is once
        set_rate(optimiser, 0.2)
    assert sorted(group["lr"] for group in optimiser.param_groups) == pytest.approx([0.01, 0.02])


def test_positions_and_tokens_of_a_vit_are_not_decayed() -> None:
    model = timm.create_model("test_vit", num_classes=2)
    named = dict(model.named_parameters())
    scales = dict.fromkeys(named, 1.0)
    free = model.no_weight_decay()
    assert {"pos_embed", "cls_token"} <= set(named) & free
    for prefix in ("", "body.encoder."):
        inside = [(prefix + name, value) for name, value in named.items()]
        groups = parameter_groups(inside, {prefix + name: 1.0 for name in scales}, lr=0.1, weight_decay=0.3)
        decay = {id(value): group["weight_decay"] for group in groups for value in group["params"]}
        for name, value in named.items():
            assert decay[id(value)] == (0.0 if value.dim() < 2 or name in free else 0.3), name
    groups = parameter_groups(named.items(), scales, lr=0.1, weight_decay=0.3, decay_vectors=True)
    assert {group["weight_decay"] for group in groups} == {0.3}
