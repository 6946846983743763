"""What joins options, data and training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dovetail.data.open import open_source
from dovetail.errors import DovetailError, OptionsError
from dovetail.networks.build import build_network
from dovetail.recipes.table import build
from dovetail.run import pretrain as job
from dovetail.run.options import PretrainOptions
from dovetail.run.resolve import (
    Images,
    check_freeze,
    check_views,
    epochs_of_preset,
    resolved_run,
    shortened,
    typed_rate,
)
from tests.data.photos import folder_of
from tests.tiny import CNN, VIT, tiny_learner
from tests.train.runs import settings


def test_every_process_names_what_it_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "photos", 7)
    (tmp_path / "photos" / "bad.jpg").write_text("text")
    monkeypatch.setattr(job, "rank", lambda: 1)
    monkeypatch.setattr(job, "world_size", lambda: 2)
    chosen = settings(num_images=8, devices=2, batch_size=4, epochs=8, steps_per_epoch=1)
    source, recipe = open_source(tmp_path / "photos"), tiny_learner("simclr").recipe
    assert len(list(job.batches_from(source, None, recipe, chosen, 3, tmp_path, 0))) == 8
    lines = [json.loads(line) for line in (tmp_path / job.SKIPPED).read_text().splitlines()]
    assert [Path(line["path"]).name for line in lines] == ["bad.jpg"]


def test_every_kind_of_view_is_tried_once() -> None:
    network = build_network("timm/test_resnet+fpn(channels=16)", image_size=64)
    tried: list[tuple[int, ...]] = []
    network.register_forward_pre_hook(lambda _, given: tried.append(tuple(given[0].pixels.shape[2:])))
    recipe = build("decon-sl", network.taps, {"image_size": 64, "hidden": 16, "dim": 8, "prototypes": 6})
    check_views(recipe, network, settings())
    assert tried == [(64, 64)]
    first, second = recipe.views.views
    other = replace(recipe, views=replace(recipe.views, views=(first, replace(second, size_px=96))))
    check_views(other, network, settings())
    assert tried[1:] == [(64, 64), (96, 96)]
    wrong = replace(recipe, views=replace(recipe.views, views=(first, replace(second, size_px=65))))
    with pytest.raises(DovetailError, match="does not support images of 65 px"):
        check_views(wrong, network, settings())


def test_what_a_frozen_encoder_leaves_to_train_is_checked(caplog: pytest.LogCaptureFixture) -> None:
    alone, both = (build_network(name, image_size=64) for name in ("timm/test_resnet", "timm/test_resnet+fpn"))
    forever = settings(freeze_encoder_epochs=float("inf"))
    with pytest.raises(DovetailError, match="no weights would be trained"):
        check_freeze(forever, alone)
    check_freeze(forever, both)
    check_freeze(settings(freeze_encoder_epochs=1.5), alone)
    assert not caplog.records
    check_freeze(settings(freeze_encoder_epochs=2.0), both)
    assert (
        "frozen for all 6 steps of the run, because freeze_encoder_epochs is 2 and the run has 2 epochs" in caplog.text
    )
    assert "freeze_encoder_epochs  2 (6 steps)" in settings(freeze_encoder_epochs=2.0).table()


@pytest.mark.parametrize(("steps", "warned"), [(1, True), (4, False)])
def test_a_preset_that_freezes_the_encoder_is_named(steps: int, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    network, short = build_network("timm/test_resnet+fpn", image_size=64), settings(max_steps=steps)
    check_freeze(replace(short, freeze_encoder_epochs=epochs_of_preset(short)), network, "continue")
    said = "frozen for the only step of the run, because the preset continue freezes it for half of the steps"
    assert (said in caplog.text) is warned
    assert "freeze_encoder_epochs" not in caplog.text


def test_a_short_run_warms_up_for_a_quarter_at_most() -> None:
    recipe = build("dino", build_network(VIT, image_size=64).taps)
    free = {"warmup_epochs", "frozen_epochs"}
    short = settings(epochs=100, steps_per_epoch=1000, max_steps=500)
    assert shortened(recipe, short, free) == {"warmup_epochs": 0.125, "frozen_epochs": 0.125}
    assert shortened(recipe, short, {"frozen_epochs"}) == {"frozen_epochs": 0.125}
    assert shortened(recipe, settings(epochs=12, steps_per_epoch=50), free) == {"warmup_epochs": 3.0}
    assert shortened(recipe, settings(epochs=100, steps_per_epoch=50), free) == {}


def test_a_typed_rate_leaves_the_rate_of_biases_as_it_is() -> None:
    chosen = {"base_lr": 24.0, "bias_lr": 0.24}
    run = settings(lr=0.5, batch_size=64)
    typed = PretrainOptions.given({"method": "slotcon", "lr": 0.5})
    taps = build_network(CNN, image_size=64).taps
    assert typed_rate(typed, run, chosen) == {"base_lr": 2.0}
    spec = build("slotcon", taps, chosen | typed_rate(typed, run, chosen)).optimiser
    assert [run.lr * rule.lr_scale for rule in spec.rules] == pytest.approx([0.24 * 64 / 256])
    assert typed_rate(typed, run, {"bias_lr": None}) == {}
    assert typed_rate(PretrainOptions.given({"lr": 0.5}, from_file=["lr"]), run, chosen) == {}
    assert typed_rate(PretrainOptions.given({}), run, chosen) == {}


@pytest.mark.parametrize("preset", ["small", "short", "continue"])
def test_an_unknown_optimiser_is_one_sentence_under_every_preset(preset: Any) -> None:
    options = PretrainOptions(data="x", method="decon-sl", preset=preset, recipe={"optimiser": "muon"})
    network = build_network("timm/test_resnet+fpn(channels=16)", image_size=64)
    with pytest.raises(OptionsError, match="There is no optimiser 'muon'; choose one of: adamw, lamb, lars, "):
        resolved_run(options, Images(100), network)
