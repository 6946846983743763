"""The benchmarks of speed do what their pages say: turns, ratios, photographs, both sides; never how fast."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.speed import (
    attention,
    decoding,
    dense,
    gpu,
    listing,
    photometrics,
    side_lightly,
    steps,
    training,
    views,
)
from benchmarks.speed.common import piece_of, ratio, take_turns, write_photographs
from PIL import Image

from dovetail.views import sampling


def test_forms_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    seconds = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert [len(took) for took in seconds.values()] == [2, 2]


def test_a_ratio_is_the_median_of_rounds_with_its_spread() -> None:
    assert ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == "2.00 (1.00 to 3.00)"


def test_pieces_are_as_large_as_asked_and_photographic(tmp_path: Path) -> None:
    source = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    assert piece_of(source, (13, 29), np.random.default_rng(0)).shape == (13, 29, 3)
    pytest.importorskip("skimage")
    paths = write_photographs(tmp_path, 6, size=(48, 64))
    images = [np.asarray(Image.open(path)) for path in paths]
    assert {image.shape for image in images} == {(48, 64, 3)}
    assert all(image.std() > 5 for image in images)


def test_both_attentions_do_the_same_arithmetic() -> None:
    case = attention.Case("test_vit", 64, 2)
    forms = [attention.form(case, fused=fused) for fused in (True, False)]
    (fused, images), (plain, same) = (form.args for form in forms)  # type: ignore[attr-defined]
    assert torch.equal(images, same)
    torch.testing.assert_close(fused(images), plain(images), rtol=1e-4, atol=1e-5)
    assert fused.blocks[0].attn.fused_attn
    assert not plain.blocks[0].attn.fused_attn
    forms[1]()


def test_views_of_all_sides_are_of_one_number_and_size(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    paths = write_photographs(tmp_path, 2, size=(48, 64))
    groups = views.small_forms(paths) | views.large_forms(paths)
    lines = views.table(groups, len(paths), rounds=1)
    assert len(lines) == sum(map(len, groups.values()))
    plan = views.plan_of("dino", local_crops=6)
    with Image.open(paths[0]) as image:
        theirs = views.DINOTransform()(image.convert("RGB"))
        stock = views.stock()(image.convert("RGB"))
    assert [one.shape[-1] for one in theirs] == [spec.size_px for spec in plan.views]
    assert [tuple(one.shape) for one in stock] == [(3, 224, 224)] * 2


@pytest.mark.parametrize("name", ["kornia", "torchvision v2, uint8", "torchvision v2, float32"])
def test_photometrics_of_all_sides_are_the_same_work(name: str) -> None:
    if name == "kornia":
        pytest.importorskip("kornia")
    crops = torch.randint(0, 256, (200, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    for title, spec in photometrics.CASES.items():
        forms = photometrics.forms(spec)
        mine, theirs = forms["ours"](crops), forms[name](crops)
        assert mine.shape == theirs.shape
        error = (mine.mean((1, 2, 3)).std() + theirs.mean((1, 2, 3)).std()) / len(crops) ** 0.5
        assert abs(mine.mean() - theirs.mean()) < 4 * error + 0.02, title
        assert abs(mine.std() - theirs.std()) < 0.1, title


def test_a_missing_kornia_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "kornia", None)
    assert list(photometrics.forms(photometrics.ALL)) == ["ours", "torchvision v2, uint8", "torchvision v2, float32"]
    assert "Skipping kornia" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # torchvision's
def test_decoders_give_the_same_pixels_at_every_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    content = write_photographs(tmp_path, 1, size=(48, 64))[0].read_bytes()
    bindings = decoding.decoders("no library")
    assert list(bindings) == [decoding.OURS, "torchvision.io", "Pillow"]
    assert "Skipping PyTurboJPEG" in capsys.readouterr().err
    for shrink in (1, 2, 4, 8):
        expected = torch.from_numpy(bindings["Pillow"](content, shrink).copy())  # type: ignore[union-attr]
        assert expected.shape == (48 // shrink, 64 // shrink, 3)
        mine = torch.from_numpy(bindings[decoding.OURS](content, shrink))  # type: ignore[arg-type]
        assert (mine.int() - expected.int()).abs().float().mean() < 1
    theirs = torch.as_tensor(bindings["torchvision.io"](content, 1)).permute(1, 2, 0)
    assert (theirs.int() - torch.from_numpy(decoding.by_simplejpeg(content, 1)).int()).abs().float().mean() < 1


def test_a_larger_margin_costs_a_view_less(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    (path,) = write_photographs(tmp_path, 1, size=(1500, 2000))
    plan, kept, mean = views.plan_of("densecl"), sampling.SHRINK_MARGIN, {}
    for margin in (2.0, 1.0):
        with decoding.margin_of(margin):
            found = decoding.differences(path, plan, index=0, epochs=2)
        mean[margin] = sum(one[1] for one in found)
    assert len(found) == 4
    assert mean[2.0] < mean[1.0]
    assert kept == sampling.SHRINK_MARGIN
    assert len(decoding.margins([path], rounds=1, epochs=1)) == len(decoding.MARGINS)


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # torchvision's
def test_tables_have_a_line_for_every_form_and_size(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    contents = [path.read_bytes() for path in write_photographs(tmp_path, 1, size=(48, 64))]
    bindings = decoding.decoders("no library")
    assert len(decoding.table(contents, "small", bindings, rounds=1)) == 3 + 2 * 3
    crops = photometrics.crops_of_photographs(2)
    assert crops.shape == (2, 3, 224, 224)
    lines = photometrics.table(crops, rounds=1)
    assert len(lines) == sum(len(photometrics.forms(spec)) for spec in photometrics.CASES.values())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")  # theirs
@pytest.mark.parametrize("method", training.METHODS)
def test_their_loops_give_losses_with_gradients(method: str) -> None:
    kind, _ = side_lightly.SIDES[method]
    model, count = kind("vit_tiny_patch16_224" if method == "dino" else "resnet10t"), 3 if method == "dino" else 2
    loss = model.step([torch.randn(2, 3, 64, 64) for _ in range(count)], 1)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in model.backbone.parameters() if parameter.requires_grad)


def test_a_whole_step_trains_and_the_bare_arithmetic_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ("densecl", "timm/resnet10t", {"hidden": 8, "dim": 4, "queue": 8})
    monkeypatch.setattr(steps, "ROWS", {"densecl": row})
    monkeypatch.setattr(steps, "SIDE_PX", 64)
    form = steps.form_of("densecl", 2)
    weights = [parameter.detach().clone() for parameter in form.learner.parameters()]
    form.bare()
    assert all(map(torch.equal, weights, form.learner.parameters()))
    form.whole()
    moved = [not torch.equal(*pair) for pair in zip(weights, form.learner.parameters(), strict=True)]
    assert any(moved[: len(moved) // 2])
    assert any(moved[len(moved) // 2 :])


def test_a_start_lists_everything(tmp_path: Path) -> None:
    listing.fill(tmp_path, 1003)
    facts = listing.start(tmp_path)
    assert facts["images"] == 1003
    assert facts["list_s"] > 0


def test_a_table_has_a_column_for_each_side_and_a_dash_for_what_one_lacks() -> None:
    sides = [training.Side(training.OURS), training.Side(training.LIGHTLY), training.Side(training.LIGHTLY_TRAIN, "p")]
    assert [side.has("densecl") for side in sides] == [True, True, False]
    lines = [*training.head(sides), training.line("densecl", {"ours": [2.0], "lightly": [1.0], "lightly-train": []})]
    assert lines[2] == "| densecl | resnet18 | 2.0 | 1.0 | – | 2.00 (2.00 to 2.00) | – |"
    assert len({line.count("|") for line in lines}) == 1


def test_without_a_gpu_the_page_says_so_and_gives_the_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main(["--methods", "simclr", "--out", str(tmp_path / "gpu.md")])
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert gpu.NONE in text
    assert "waiting" not in text.partition("| method")[2]
    _, flops = gpu.costs()["simclr"]
    assert f"| {gpu.H200 / flops:,.0f} |" in text


@pytest.mark.slow
def test_a_run_tells_its_speed_and_waiting(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    write_photographs(tmp_path, 8, size=(48, 64))
    facts = gpu.trained("simsiam", "timm/test_resnet", str(tmp_path), 4, 3 * gpu.WARM_UP, 1, "cpu")
    assert facts["rate"] > 0
    assert 0 <= facts["wait"] <= 1


def test_dense_measures_are_timed_on_a_set_of_many_classes(tmp_path: Path) -> None:
    folder = dense.write_set(tmp_path / "set", 10, 64)
    assert len(list((folder / "train" / "masks").iterdir())) == 8
    labels = {int(one) for path in folder.rglob("masks/*.png") for one in np.unique(np.asarray(Image.open(path)))}
    assert labels <= set(range(dense.CLASSES))
    assert len(labels) > 10
    facts = dense.measured("timm/test_resnet+fpn(channels=16)", "retrieval", folder, 64)
    assert facts["busy_s"] > 0
    assert facts["wall_s"] > 0
