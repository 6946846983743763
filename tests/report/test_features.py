"""Principal components as colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.recipe import LateralDropout, NetworkRules
from dovetail.report.features import coloured, lab_to_rgb, maps_of, principal_components, shown_taps
from dovetail.report.pixels import as_view
from tests.tiny import CNN, tiny_recipe


def test_components_of_a_plane_hold_all_its_variance() -> None:
    torch.manual_seed(0)
    features = torch.randn(200, 2) @ torch.randn(2, 16) + 3
    projected, share = principal_components(features, 2)
    assert share == pytest.approx(1, abs=1e-5)
    centred = features - features.mean(0)
    assert torch.allclose(projected @ projected.T, centred @ centred.T, atol=1e-3)
    assert projected[:, 0].var() > projected[:, 1].var()


def test_colours_do_not_depend_on_the_sign_that_a_solver_picks() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 8, 4, 4)
    first, again = coloured(maps), coloured(maps.clone())
    assert all(np.array_equal(a, b) for a, b in zip(first.pictures, again.pictures, strict=True))
    assert first.pictures[0].shape == (4, 4, 3)


def test_constant_and_narrow_maps_are_drawn() -> None:
    flat = coloured(torch.ones(2, 8, 3, 3))
    assert len(np.unique(np.stack(flat.pictures).reshape(-1, 3), axis=0)) == 1
    assert coloured(torch.randn(1, 1, 2, 2)).pictures[0].shape == (2, 2, 3)
    with pytest.raises(DovetailError, match="need a feature map"):
        coloured(torch.ones(2, 8))


def test_lab_gives_known_colours() -> None:
    lab = np.array([[0.0, 0, 0], [100, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]])
    expected = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255]]
    assert np.abs(lab_to_rgb(lab).astype(int) - expected).max() <= 2


def test_looking_leaves_a_network_in_training_as_it_was() -> None:
    network = build_network(CNN, image_size=64).following(NetworkRules(lateral_dropout=LateralDropout(0.5))).train()
    recipe = tiny_recipe("decon-sl", network.taps)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    view = as_view([torch.zeros(3, 64, 64, dtype=torch.uint8)], recipe.views, network)
    taps = shown_taps(network.taps, recipe)
    assert taps == ["c5", "p2"]
    first, again = maps_of(network, view, taps), maps_of(network, view, taps)
    assert torch.equal(first["p2"], again["p2"])  # no dropout
    assert network.training
    assert not network.resting
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
