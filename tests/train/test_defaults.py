"""What "auto" becomes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dovetail.errors import DovetailError
from dovetail.recipe import Recipe
from dovetail.train import defaults
from dovetail.train.defaults import MIN_STEPS, Settings, processor_has_bfloat16, resolve
from dovetail.train.options import EngineOptions
from tests.tiny import tiny_learner


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return replace(tiny_learner("slotcon").recipe, epochs=100, batch_size=512)


@pytest.fixture(autouse=True)
def processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a processor of eight cores without bfloat16."""
    monkeypatch.setattr(defaults, "best_accelerator", lambda: "cpu")
    monkeypatch.setattr(defaults, "processor_has_bfloat16", lambda: False)
    monkeypatch.setattr(defaults, "available_cores", lambda: 8)


def test_auto_on_a_processor(recipe: Recipe) -> None:
    settings = resolve(recipe, EngineOptions(), num_images=10_000)
    assert (settings.accelerator, settings.devices, settings.batch_size) == ("cpu", 1, 32)
    assert (settings.precision, settings.workers, settings.sync_batch_norm) == ("32-true", 4, False)
    assert (settings.steps_per_epoch, settings.epochs) == (312, 100)
    assert settings.total_steps == 31200
    assert settings.lr == recipe.optimiser.base_lr * 32 / 256


def test_the_statistics_of_a_frozen_encoder_are_frozen(recipe: Recipe) -> None:
    for epochs, asked, expected in (("all", "auto", "frozen"), (0.5, "auto", "train"), ("all", "train", "train")):
        options = EngineOptions(freeze_encoder_epochs=epochs, encoder_batch_norm=asked)
        assert resolve(recipe, options, num_images=100).encoder_batch_norm == expected


def test_few_images_get_more_epochs_and_a_batch_that_fits(recipe: Recipe) -> None:
    settings = resolve(recipe, EngineOptions(), num_images=20)
    assert (settings.batch_size, settings.steps_per_epoch) == (16, 1)
    assert settings.total_steps >= MIN_STEPS


def test_what_is_asked_for_stays(recipe: Recipe) -> None:
    options = EngineOptions(batch_size=10, accumulate=3, epochs=7, lr=0.5, workers=1, precision="bf16-mixed", devices=2)
    settings = resolve(recipe, options, num_images=125)
    assert settings.global_batch == 60
    assert (settings.steps_per_epoch, settings.total_steps) == (2, 14)
    assert (settings.lr, settings.workers, settings.precision) == (0.5, 1, "bf16-mixed")


def test_the_batch_on_a_gpu_follows_memory_and_pixels(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = 24 * 2**30

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Card())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)

    def at(size_px: int) -> Settings:
        views = tuple(replace(view, size_px=size_px) for view in recipe.views.views)
        sized = replace(recipe, views=replace(recipe.views, views=views))
        return resolve(sized, EngineOptions(accelerator="cuda"), num_images=100_000)

    assert (at(224).batch_size, at(448).batch_size, at(64).batch_size) == (64, 16, 256)
    assert (at(224).devices, at(224).sync_batch_norm, at(224).precision) == (2, True, "bf16-mixed")


@pytest.mark.parametrize(("method", "joint"), [("slotcon", True), ("moco-v2", False), ("densecl", False)])
def test_images_are_shuffled_or_statistics_are_joint(method: str, joint: bool) -> None:
    """Statistics of all images would tell a batch's own keys from those of the queue."""
    settings = resolve(tiny_learner(method).recipe, EngineOptions(devices=2), num_images=100)
    assert settings.sync_batch_norm is joint


def test_one_core_loads_in_a_process_of_its_own_all_the_same(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "available_cores", lambda: 1)
    assert resolve(recipe, EngineOptions(), num_images=100).workers == 1


@pytest.mark.parametrize(
    ("flags", "has"), [("fma avx512f avx512_bf16", True), ("amx_bf16 amx_tile", True), ("fma avx2 avx512f", False)]
)
def test_bfloat16_is_read_from_the_processors_features(tmp_path: Path, flags: str, has: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert processor_has_bfloat16(cpuinfo) is has
    assert processor_has_bfloat16(tmp_path / "missing") is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, "50 images, fewer than the 64 of one step; choose a batch size of at most 50"),
        ({"batch_size": 16, "accumulate": 4}, "at most 12"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"epochs": -1}, "epochs is -1"),
        ({"strategy": "fsdq"}, "no strategy 'fsdq'; did you mean 'fsdp'"),
        ({"strategy": "fsdp", "accelerator": "mps"}, "not supported on Apple's GPU"),
        ({"lr": -0.1}, "lr is -0.1"),
        ({"lr": float("nan")}, "lr is nan"),
    ],
)
def test_numbers_out_of_range_get_a_sentence(recipe: Recipe, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DovetailError, match=message):
        resolve(recipe, EngineOptions(**changes), num_images=50)


def test_settings_survive_plain_data(recipe: Recipe) -> None:
    settings = resolve(recipe, EngineOptions(), num_images=50)
    assert Settings.from_dict(settings.as_dict()) == settings
    with pytest.raises(DovetailError, match="odd"):
        Settings.from_dict(settings.as_dict() | {"odd": 1})
    for value in (None, 0, "4"):
        with pytest.raises(DovetailError, match="batch_size"):
            Settings.from_dict(settings.as_dict() | {"batch_size": value})
    for name in ("epochs", "max_steps", "num_images", "steps_per_epoch"):
        with pytest.raises(DovetailError, match=name):
            Settings.from_dict(settings.as_dict() | {name: "x"})


def test_the_table_names_every_number(recipe: Recipe) -> None:
    settings = resolve(recipe, EngineOptions(), num_images=50)
    table = settings.table()
    assert all(name in table for name in settings.as_dict())
    assert f"total_steps {settings.total_steps}" in " ".join(table.split())


def test_a_run_logs_and_saves_when_due(recipe: Recipe) -> None:
    options = EngineOptions(batch_size=10, epochs=4, log_every_steps=3, keep_every_epochs=2)
    settings = replace(resolve(recipe, options, num_images=35), save_every_steps=5)
    steps = range(1, settings.total_steps + 1)
    assert [step for step in steps if settings.logs_after(step)] == [3, 6, 9, 12]
    assert [step for step in steps if settings.saves_after(step)] == [5, 6, 10, 12]
    assert [step for step in steps if settings.keeps_after(step)] == [6, 12]


@pytest.mark.parametrize(
    ("readings", "log_every_steps", "wanted"),
    [(1, 1, [12]), (3, 1, [4, 8, 12]), (3, 5, [5, 10, 12]), (5, 3, [3, 6, 9, 12]), (99, 5, [5, 10, 12])],
)
def test_knn_comes_evenly_with_lines_of_the_log(
    recipe: Recipe, readings: int, log_every_steps: int, wanted: list[int]
) -> None:
    options = EngineOptions(
        batch_size=10, epochs=4, log_every_steps=log_every_steps, knn_readings=readings, dense_readings=1
    )
    settings = resolve(recipe, options, num_images=35)
    steps = range(1, settings.total_steps + 1)
    assert [step for step in steps if settings.logs_after(step) and settings.knn_after(step)] == wanted
    assert [step for step in steps if settings.logs_after(step) and settings.dense_after(step)] == [steps[-1]]
