"""Options of ViTs that reach the library by name: stochastic depth and recomputed blocks."""

from __future__ import annotations

import pytest

from dovetail.errors import DovetailError
from dovetail.networks.build import build_network


def test_stochastic_depth_reaches_the_blocks() -> None:
    network = build_network("timm/test_vit", image_size=32, drop_path=0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in network.model.blocks]
    assert rates[-1] == pytest.approx(0.2)
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("model", "options"), [("timm/test_resnet", {"drop_path": 0.1}), ("timm/test_vit", {"drop_path": 1.0})]
)
def test_models_and_rates_that_do_not_fit_get_a_sentence(model: str, options: dict[str, float]) -> None:
    with pytest.raises(DovetailError, match="drop_path"):
        build_network(model, image_size=64, **options)
