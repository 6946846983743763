"""The toy check's own parts: its tiles, its mosaics, its table; the runs themselves are in tests/test_learning.py."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.toy import PROBE_PX, TRIALS, Bench, Outcome, make_model, table, trial_of, varied

from benchmarks import toy
from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.recipe import Tap
from dovetail.recipes.table import METHODS, build, examples, options_of


def test_every_base_method_and_the_main_compositions_are_tried() -> None:
    tried = {trial.method for trial in TRIALS}
    # The toy's networks begin with random weights, and there is nothing to predict in a random encoder's features.
    assert set(METHODS) - {"encoder-targets"} <= tried
    assert {"decon-sl", "decon-ml", "decon-sl-densecl", "decon-sl-pixpro", "decon-sl-byol"} <= tried
    assert {"adclr-dino", "adclr-ibot", "dino+decon-sl", "adclr+decon"} <= tried
    assert tried <= {*examples(), "adclr-dino", "adclr-ibot", "dino+decon-sl-simclr"}


@cache
def taps_of(architecture: str) -> Mapping[str, Tap]:
    """Return the taps of a toy network, which is built once for all trials."""
    return build_network(make_model(architecture, 0), image_size=PROBE_PX).taps


@pytest.mark.parametrize("trial", TRIALS, ids=[trial.method for trial in TRIALS])
def test_every_trial_s_options_are_known_and_its_margins_positive(trial: toy.Trial) -> None:
    assert set(trial.recipe) <= set(options_of(trial.method))
    assert trial.margins
    assert all(margin > 0 for margin in trial.margins.values())
    if "decon" in trial.method:
        assert "decoder" in trial.margins
    assert build(trial.method, taps_of(trial.architecture), trial.recipe).name == trial.method


def test_models_are_drawn_from_the_seed() -> None:
    first, again, other = (make_model("cnn", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_varied_mosaic_keeps_its_labels_aligned() -> None:
    labels = torch.zeros(96, 96, dtype=torch.uint8)
    labels[:, 48:] = 1
    shown = varied(labels * 100 + 78, labels, np.random.default_rng(0))
    assert shown.image.shape == (3, PROBE_PX, PROBE_PX)
    bright = shown.image[0].float() > shown.image[0].float().mean()
    assert (bright == (shown.mask == 1)).float().mean() > 0.97


def test_the_bench_is_the_same_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TILES", "LABELLED", "TEST"):
        monkeypatch.setattr(toy, name, 3)
    first, again = Bench.make(tmp_path), Bench.make(tmp_path)
    assert len(first.tiles) == 3
    assert all(np.array_equal(one, two) for one, two in zip(first.tiles, again.tiles, strict=True))
    assert torch.equal(first.data.test[2].image, again.data.test[2].image)
    assert not torch.equal(first.data.test[2].image, first.data.train[2].image)


def test_a_run_passes_when_every_part_gains_its_margin() -> None:
    trial = toy.Trial("x", "cnn", {}, {"encoder": 0.05, "decoder": 0.05})
    good = Outcome({"encoder": 0.4, "decoder": 0.3}, {"encoder": 0.3, "decoder": 0.2}, 1.0)
    bad = Outcome({"encoder": 0.4, "decoder": 0.22}, {"encoder": 0.3, "decoder": 0.2}, 1.0)
    assert good.passes(trial)
    assert not bad.passes(trial)
    assert "| x | cnn | decoder | 20.0 | 26.0 | +2.0 | 5 | 1 of 2 | 1 |" in table({trial: [good, bad]})


def test_an_unknown_trial_is_refused() -> None:
    with pytest.raises(DovetailError, match="did you mean 'simclr'"):
        trial_of("simclrr")
