"""The vector head: any map or vector in, one vector an image out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dovetail.errors import DovetailError
from dovetail.heads.vector import VectorHeadSpec


def test_a_map_is_averaged_over_its_cells() -> None:
    head = VectorHeadSpec(hidden=6, dim=4).build(5).double()
    maps = torch.randn(3, 5, 2, 7, dtype=torch.float64)
    torch.testing.assert_close(head(maps), head(maps.mean(dim=(2, 3))))
    assert head(maps).shape == (3, 4)


def test_the_same_spec_sits_on_maps_of_any_size() -> None:
    spec = VectorHeadSpec(hidden=6, dim=4)
    for channels, side in ((3, 1), (8, 16)):
        assert spec.build(channels)(torch.randn(2, channels, side, side)).shape == (2, 4)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_have_the_widths_asked_for(layers: int) -> None:
    head = VectorHeadSpec(hidden=7, dim=4, layers=layers).build(5)
    linears = [part for part in head.modules() if isinstance(part, nn.Linear)]
    widths = [linears[0].in_features, *[linear.out_features for linear in linears]]
    assert widths == [5, *[7] * (layers - 1), 4]


def test_norms_and_biases_are_where_they_are_asked_for() -> None:
    head = VectorHeadSpec(hidden=7, dim=4, bias=False, last_norm="plain", last_bias=False).build(5)
    assert [name for name, _ in head.named_parameters() if name.endswith("bias")] == ["projector.0.bn.bias"]
    plain = VectorHeadSpec(hidden=7, dim=4, norm=False).build(5)
    assert not any(isinstance(part, nn.BatchNorm1d) for part in plain.modules())


def test_takes_maps_and_vectors_only() -> None:
    assert set(VectorHeadSpec().kinds) == {"map", "vector"}


def test_a_head_without_layers_is_refused() -> None:
    with pytest.raises(DovetailError, match="at least 1"):
        VectorHeadSpec(layers=0)
