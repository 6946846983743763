from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dovetail.data.loader import ViewDataset, ViewLoader, make_loader
from dovetail.data.open import open_source
from dovetail.data.reading.skipped import SkippedLog
from dovetail.data.reading.values import values_within
from dovetail.errors import DovetailError
from dovetail.views.batch import ViewBatch, collate, to_views
from dovetail.views.plan import MaskSpec, Photometric, PointSpec, QuerySpec, ViewPlan, ViewSpec
from dovetail.views.view import View
from tests.data.photos import folder_of, smooth

GLOBAL = ViewSpec(32, photometric=Photometric(solarise_p=0.2))
PLAN = ViewPlan((GLOBAL, GLOBAL), min_overlap=0.01)
FULL_PLAN = ViewPlan(
    (GLOBAL, GLOBAL, ViewSpec(16, scale=(0.05, 0.25), role="local")),
    queries=QuerySpec(count=3, size_px=8, independent=True),
    masks=MaskSpec(patch_px=8),
    points=PointSpec(count=5),
)


def loader(
    folder: Path, plan: ViewPlan = PLAN, *, workers: int = 0, start: int = 0, steps: int = 5, batch: int = 4
) -> ViewLoader:
    return make_loader(
        open_source(folder),
        plan,
        global_batch=batch,
        total_steps=steps,
        start_step=start,
        seed=3,
        num_workers=workers,
        skipped_file=folder / "run" / "skipped.jsonl",
    )


def same(a: View, b: View) -> bool:
    for name, value in vars(a).items():
        other = getattr(b, name)
        if not (value.equal(other) if isinstance(value, Tensor) else value == other):
            return False
    return True


def test_number_of_workers_and_resuming_change_nothing(tmp_path: Path) -> None:
    folder_of(tmp_path, 10)
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    alone = [to_views(batch, FULL_PLAN) for batch in loader(tmp_path, FULL_PLAN)]
    helped = [to_views(batch, FULL_PLAN) for batch in loader(tmp_path, FULL_PLAN, workers=2)]
    resumed = [to_views(batch, FULL_PLAN) for batch in loader(tmp_path, FULL_PLAN, start=2)]
    assert len(alone) == 5
    for ours, other in zip(alone + alone[2:], helped + resumed, strict=True):
        assert all(same(a, b) for a, b in zip(ours, other, strict=True))


def test_shapes_of_a_full_plan(tmp_path: Path) -> None:
    batch = next(iter(loader(folder_of(tmp_path, 6), FULL_PLAN)))
    first, second, local = to_views(batch, FULL_PLAN, channels_last=True)
    assert len(batch) == 4
    assert first.pixels.shape == (4, 3, 32, 32)
    assert first.pixels.is_contiguous(memory_format=torch.channels_last)
    assert local.pixels.shape == (4, 3, 16, 16)
    assert (first.role, local.role) == ("global", "local")
    assert first.mask is not None
    assert first.mask.shape == (4, 4, 4)
    assert first.queries is not None
    assert second.queries is not None
    assert first.queries.shape == (4, 3, 3, 8, 8)
    assert not first.queries.equal(second.queries)
    assert first.query_box is not None
    assert first.query_box.shape == (4, 3, 4)
    assert local.mask is local.queries is local.query_box is None
    assert first.source_px.tolist() == [[60.0, 40.0]] * 4
    assert first.box.dtype == torch.float32


def test_shared_queries_have_the_same_pixels_in_both_views(tmp_path: Path) -> None:
    plan = ViewPlan((GLOBAL, GLOBAL), queries=QuerySpec(count=2, size_px=8))
    first, second = to_views(next(iter(loader(folder_of(tmp_path, 4), plan))), plan)
    assert first.queries is not None
    assert second.queries is not None
    assert first.queries.equal(second.queries)


def test_epochs_bring_other_views(tmp_path: Path) -> None:
    dataset = ViewDataset(open_source(folder_of(tmp_path, 2)), PLAN, seed=0)
    first, again, other, next_epoch = (dataset[key] for key in [(0, 0), (0, 0), (0, 1), (1, 0)])
    assert first.box.equal(again.box)
    assert not first.box.equal(other.box)
    assert not first.box.equal(next_epoch.box)


def test_pixels_come_from_the_box(tmp_path: Path) -> None:
    nothing = Photometric(jitter_p=0, grey_p=0, blur_p=0)
    plan = ViewPlan((ViewSpec(32, photometric=nothing), ViewSpec(32, photometric=nothing)))
    x = np.broadcast_to(np.linspace(0, 1, 60, dtype=np.float32)[None, :, None], (40, 60, 3))
    y = np.broadcast_to(np.linspace(0, 1, 40, dtype=np.float32)[:, None, None], (40, 60, 3))
    source = open_source([np.concatenate([x[:, :, :1], y[:, :, :1], x[:, :, :1]], axis=2)] * 8)
    batches = make_loader(source, plan, global_batch=8, total_steps=1, seed=0)
    for view in to_views(next(iter(batches)), plan):
        pixels = view.pixels * torch.tensor(plan.std)[:, None, None] + torch.tensor(plan.mean)[:, None, None]
        centre = (view.box[:, :2] + view.box[:, 2:]) / 2
        torch.testing.assert_close(pixels[:, :2].mean((2, 3)), centre, atol=0.02, rtol=0)
        falls = pixels[:, 0, :, 0].mean(1) > pixels[:, 0, :, -1].mean(1)
        assert falls.equal(view.flipped)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_other_channel_counts(channels: int) -> None:
    arrays = [np.random.default_rng(seed).integers(0, 256, (20, 30, channels), dtype=np.uint8) for seed in range(4)]
    batches = make_loader(open_source(arrays), PLAN, global_batch=4, total_steps=1, seed=0, in_channels=channels)
    view = to_views(next(iter(batches)), PLAN)[0]
    assert view.pixels.shape == (4, channels, 32, 32)
    assert view.pixels.abs().max() <= 2  # (0 or 1 - 0.5) / 0.25


def test_plan_with_statistics_of_its_own() -> None:
    nothing = Photometric(jitter_p=0, grey_p=0, blur_p=0)
    plan = ViewPlan((ViewSpec(8, photometric=nothing),), mean=(0.0, 1.0), std=(1.0, 0.5))
    grey = np.full((9, 9, 2), 255, dtype=np.uint8)
    batches = make_loader(open_source([grey]), plan, global_batch=1, total_steps=1, seed=0, in_channels=2)
    pixels = to_views(next(iter(batches)), plan)[0].pixels
    assert pixels[0, :, 0, 0].tolist() == [1.0, 0.0]


def test_views_stay_float32_under_autocast(tmp_path: Path) -> None:
    batch = next(iter(loader(folder_of(tmp_path, 4))))
    expected = to_views(batch, PLAN)[0].pixels
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert to_views(batch, PLAN)[0].pixels.equal(expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_and_named_once(tmp_path: Path, workers: int) -> None:
    folder_of(tmp_path, 9)
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.png").write_text("text")
    (tmp_path / "c.jpg").write_bytes((tmp_path / "000.jpg").read_bytes()[:300])
    batches = loader(tmp_path, workers=workers, steps=9)
    seen = list(batches)
    assert len(seen) == 9
    assert all((batch.used < 9).all() for batch in seen)
    assert any(batch.used.ne(batch.index).any() for batch in seen)
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(Path(line["path"]).name for line in lines) == ["a.jpg", "b.png", "c.jpg"]
    assert {line["reason"] for line in lines} >= {"the file is empty", "it is not an image in a supported format"}
    assert batches.skipped.count == 3
    list(loader(tmp_path, steps=9))
    assert len((tmp_path / "run" / "skipped.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_half_unreadable_ends_the_run(tmp_path: Path, workers: int) -> None:
    folder_of(tmp_path, 3)
    for number in range(5):
        (tmp_path / f"bad{number}.jpg").write_text("text")
    with pytest.raises(DovetailError, match=r"^5 of 8 images .* read, such as '.*bad\d.jpg' \(it is not an im"):
        list(loader(tmp_path, workers=workers, steps=20))


@pytest.mark.parametrize("count", [4, 100])
def test_nothing_readable_ends_the_run(tmp_path: Path, count: int) -> None:
    for number in range(count):
        (tmp_path / f"{number}.jpg").write_text("text")
    with pytest.raises(DovetailError, match="cannot be read") as caught:
        list(loader(tmp_path, steps=2))
    assert "\n" not in str(caught.value)


def test_exactly_half_goes_on(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    (tmp_path / "x.jpg").touch()
    (tmp_path / "y.jpg").touch()
    assert len(list(loader(tmp_path, steps=6, batch=2))) == 6


def test_every_process_names_what_it_skips(tmp_path: Path) -> None:
    """Into one file, each image once, whichever process came upon it."""
    folder_of(tmp_path, 12)
    for number in range(4):
        (tmp_path / f"bad{number}.jpg").write_text("text")
    log = tmp_path / "run" / "skipped.jsonl"
    ranks = [
        make_loader(
            open_source(tmp_path),
            PLAN,
            global_batch=8,
            total_steps=12,
            seed=0,
            rank=rank,
            world_size=2,
            skipped_file=log,
        )
        for rank in range(2)
    ]
    alone: list[set[str]] = [set(), set()]
    for batches in zip(*ranks, strict=True):
        for rank, batch in enumerate(batches):
            alone[rank] |= {Path(one.path).name for one in batch.skipped}
    named = [Path(json.loads(line)["path"]).name for line in log.read_text().splitlines()]
    assert sorted(named) == [f"bad{number}.jpg" for number in range(4)]
    assert all(alone)


def test_log_survives_a_line_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "skipped.jsonl"
    file.write_text('{"path": "a.jpg", "reason": "r"}\n{"path": "b.j')
    assert SkippedLog(file, 4).count == 1


def test_too_few_images(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match="3 images, but a batch needs 4"):
        loader(folder_of(tmp_path, 3))


def test_dataset_and_batch_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    dataset = ViewDataset(open_source(folder_of(tmp_path, 2)), FULL_PLAN, seed=0)
    there = pickle.loads(pickle.dumps(dataset))
    batch, other = collate([dataset[0, 1]]), pickle.loads(pickle.dumps(collate([there[0, 1]])))
    assert isinstance(other, ViewBatch)
    for a, b in zip(to_views(batch, FULL_PLAN), to_views(other, FULL_PLAN), strict=True):
        assert same(a, b)


def test_odd_sizes_of_photographs(tmp_path: Path) -> None:
    sizes = [(1, 1), (1, 300), (300, 1), (2, 3), (500, 400)]
    source = open_source([smooth(*size) for size in sizes])
    batches = make_loader(source, FULL_PLAN, global_batch=5, total_steps=3, seed=0)
    for batch in batches:
        for view in to_views(batch, FULL_PLAN):
            assert torch.isfinite(view.pixels).all()
            assert (view.box[:, 2:] > view.box[:, :2]).all()
            assert view.box.min() >= 0
            assert view.box.max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_bands_of_more_than_8_bits_keep_their_levels(interpolation: Any) -> None:
    """Twelve bands of 0 to 3000, which are 13 levels of 16 bits' 256, beside an image of 8 bits."""
    nothing = Photometric(jitter_p=0, grey_p=0, blur_p=0)
    view = ViewSpec(
        40, scale=(1.0, 1.0), ratio=(1.0, 1.0), interpolation=interpolation, photometric=nothing, flip_p=0.0
    )
    plan = ViewPlan((view,), mean=(0.0,) * 12, std=(1.0,) * 12)
    deep = np.random.default_rng(0).integers(0, 3001, (40, 40, 12), dtype=np.uint16)
    plain = np.full((40, 40, 12), 51, dtype=np.uint8)
    with values_within([0, 3000]):
        batches = make_loader(open_source([deep, plain]), plan, global_batch=2, total_steps=1, seed=0, in_channels=12)
        batch = next(iter(batches))
        pixels = to_views(batch, plan)[0].pixels
    order = batch.used.tolist()
    found = pixels[order.index(0)]
    assert len(found.unique()) > 2500
    assert found.min() >= 0
    assert found.max() <= 1
    torch.testing.assert_close(found, torch.from_numpy(deep / 3000).float().permute(2, 0, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(pixels[order.index(1)], torch.full((12, 40, 40), 0.2))
