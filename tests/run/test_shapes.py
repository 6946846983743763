"""Runs on views that are not square, from the command to the loaded model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import dovetail
from dovetail.cli import run as run_command
from dovetail.downstream.labels.readers import open_segmentation
from dovetail.downstream.options import FinetuneSegmentOptions
from dovetail.downstream.segment.job import plan_of
from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.networks.construct import construct
from dovetail.parsing import make_parser
from dovetail.run.options import PretrainOptions
from dovetail.run.restored import restore
from dovetail.run.summary import term_line
from tests.downstream.test_finetune import mask_folder

BY = ("linear", "retrieval")
Pretrain = Callable[..., dovetail.Run]


def described(folder: Path) -> dict[str, object]:
    """Return the `model.json` of a run."""
    found: dict[str, object] = json.loads((folder / "exported" / "model.json").read_text())
    return found


def test_a_run_of_64x96_is_saved_loaded_strictly_and_resumed(
    pretrain: Pretrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = {"out": out, "model": "smp/unet/tu-test_resnet"}
    run = pretrain(**options, image_size="64x96")
    assert run.finished
    said = capsys.readouterr().out
    assert "64x96 cells" in said  # of the Unet's map of stride 1
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["image_size"] == config["recipe"]["image_size"] == [64, 96]
    info = described(out)
    assert info["image_size"] == [64, 96]
    weights = load_file(out / "exported" / "model.safetensors")
    construct(str(info["constructor"])).load_state_dict(weights, strict=True)
    with pytest.raises(DovetailError, match="image_size"):
        pretrain(**options, resume=True, image_size=(96, 64), max_steps=3)
    longer = pretrain(**options, resume=True, image_size=(64, 96), max_steps=3)
    assert longer.step == 3


def test_the_page_and_embeddings_have_the_shape_of_the_views(pretrain: Pretrain, tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "run"
    pretrain(out=out, model="timm/test_resnet", method="moco-v2", image_size=(64, 96), report_every_minutes=60.0)
    page = (out / "report.html").read_text()
    assert "of 64x96 px" in page
    assert "--shape: 192 / 128" in page  # pictures have twice the size of the views
    vectors = np.load(dovetail.embed(run=out, data=photos, out=tmp_path / "e.npy"))
    other = np.load(dovetail.embed(run=out, data=photos, out=tmp_path / "o.npy", side_px=64))
    assert vectors.shape == other.shape == (12, vectors.shape[1])
    assert not np.allclose(vectors, other)


def test_a_vit_of_64x96_is_loaded_at_other_sizes(pretrain: Pretrain, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = {"local_size": 32, "bottleneck": 8}
    pretrain(out=out, model="timm/test_vit", method="dino", image_size=(64, 96), recipe=recipe)
    plan = restore(out).recipe.views
    assert {spec.size_px for spec in plan.views if spec.role == "local"} <= {(32, 48)}
    vit = dovetail.load(out)
    assert tuple(vit.patch_embed.grid_size) == (4, 6)
    grid = vit.pos_embed[:, 1:].reshape(1, 4, 6, -1)
    wide = dovetail.load(out, image_size="64x192")
    assert tuple(wide.patch_embed.grid_size) == (4, 12)
    tall = dovetail.load(out, image_size=(96, 64))  # as many positions, in another order
    turned = tall.pos_embed[:, 1:].reshape(1, 6, 4, -1)
    want = torch.nn.functional.interpolate(
        grid.permute(0, 3, 1, 2), size=(6, 4), mode="bicubic", antialias=True
    ).permute(0, 2, 3, 1)
    torch.testing.assert_close(turned, want)
    square = timm.create_model("test_vit", img_size=64, num_classes=0)
    report = dovetail.load_into(square, out)
    assert list(report.resampled) == ["pos_embed"]
    same = timm.create_model("test_vit", img_size=(64, 96), num_classes=0)
    assert not dovetail.load_into(same, out).resampled
    assert torch.equal(same.pos_embed, vit.pos_embed)
    again = pretrain(
        out=tmp_path / "next", model="timm/test_vit", method="dino", image_size=64, init=out, recipe=recipe
    )
    assert again.finished


def test_frozen_measures_use_the_shape_of_the_run(pretrain: Pretrain, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / "classes" / split / name
            folder.mkdir(parents=True)
            for index in range(3):
                Image.fromarray(rng.integers(0, 256, (70, 110, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    run = pretrain(out=tmp_path / "run", image_size=(64, 96), knn_data=tmp_path / "classes")
    results = dovetail.evaluate_knn(run=run.folder, data=tmp_path / "classes", k=[1], workers=0)
    assert results is not None
    saved = json.loads((run.folder / "evaluate-knn" / "results.json").read_text())
    assert saved["config"]["resolved_image_size"] == [64, 96]
    tuned = tmp_path / "tuned"
    dovetail.finetune_classify(
        run=run.folder, data=tmp_path / "classes", out=tuned, steps=1, batch_size=2, start=["all"]
    )
    assert dovetail.load(next(tuned.rglob("model.safetensors")).parent).class_names == ("a", "b")


def test_sides_that_the_model_does_not_support_are_refused(pretrain: Pretrain, tmp_path: Path) -> None:
    with pytest.raises(
        DovetailError, match=r"images of 64x100 px; height and width must be multiples of 32, such as 64x96"
    ):
        pretrain(out=tmp_path / "cnn", image_size=(64, 100))
    with pytest.raises(
        DovetailError, match=r"image_size 64x100 is not a multiple of .* patch size 16; set it to 64x96"
    ):
        pretrain(out=tmp_path / "vit", model="timm/test_vit", method="ibot", image_size="64x100")
    with pytest.raises(DovetailError, match=r"image_size is '64x'; it must be a whole number of pixels, or"):
        pretrain(out=tmp_path / "typo", image_size="64x")
    with pytest.raises(DovetailError, match=r"image_size is 4; it must be at least 8"):
        pretrain(out=tmp_path / "low", image_size=(4, 64))


def test_the_command_line_and_files_take_both_sides(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["show", "slotcon", "--model", "timm/test_resnet"]
    assert run_command([*asked, "--image-size", "64x96"]) == 0
    assert "64x96 px" in capsys.readouterr().out
    for number, written in enumerate(("[64, 96]", "64x96", "[64, 96]\nrecipe:\n  image_size: [64, 96]")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(f"data: {photos}\nmodel: timm/test_resnet\nmethod: moco-v2\nimage_size: {written}\n")
        parsed = make_parser("pretrain", PretrainOptions, ["--config", str(file)], config="read")
        assert parsed.parse_args(["--config", str(file)]).image_size == (64, 96)
    with pytest.raises(SystemExit):
        run_command(["pretrain", "--method", "dino", "--image-size", "64x96", "--print-config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert PretrainOptions(image_size=printed["image_size"]).image_size == (64, 96)
    assert run_command([*asked, "--image-size", "64xwide"]) == 2
    assert "image_size is '64xwide'; it must be a whole number of pixels, or" in capsys.readouterr().err


def test_cells_of_a_term_are_told_per_side() -> None:
    from tests.tiny import tiny_recipe

    network = build_network("timm/test_resnet+fpn", image_size=(64, 96))
    recipe = tiny_recipe("decon-sl", network.taps, image_size=(64, 96))
    name = next(term.name for term in recipe.terms if term.name.startswith("decoder"))
    assert "16x24 cells pooled to 8x8" in term_line(recipe, network, name)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("dynamic", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_run_of_64x96_is_measured_on_labels_and_exported_as_a_program(
    dynamic: bool, pretrain: Pretrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Programs for any size, of a model of this shape, are also in `tests/weights/test_graphs.py`."""
    labelled = mask_folder(tmp_path / "labelled", images=5)
    asked = {"model": "smp/unet/tu-test_resnet", "dense_data": labelled, "dense_readings": 1, "max_steps": 1}
    run = pretrain(out=tmp_path / "run", image_size=(64, 96), **asked)
    results = dovetail.evaluate_dense(run=run.folder, data=labelled, protocols=["linear"], steps=2, workers=0)
    assert results is not None
    saved = json.loads((run.folder / "evaluate-dense" / "results.json").read_text())
    assert saved["config"]["resolved_image_size"] == [64, 96]
    readings = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert readings[-1]["dense"].keys() == {f"{at}/{by}" for at in ("encoder", "decoder") for by in BY}
    to = dovetail.export(run=run.folder, format="torch-export", to=tmp_path / "model.pt2", dynamic=dynamic)
    assert "; not trained: segmentation_head.0.weight, segmentation_head.0.bias\n" in capsys.readouterr().out
    program, model = torch.export.load(to).module(), run.load().eval()
    for height, width in [(64, 96), (96, 64), (128, 64)] if dynamic else [(64, 96)]:
        pixels = torch.rand(1, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(program(pixels), model(pixels), rtol=1e-4, atol=1e-5)


def test_crops_of_fine_tuning_are_not_square(
    pretrain: Pretrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = mask_folder(tmp_path / "labelled", images=5)
    run = pretrain(out=tmp_path / "run", image_size=(64, 96), max_steps=1)
    command = ["finetune", "segment", "--run", str(run.folder), "--data", str(labelled), "--out", str(tmp_path / "a")]
    command += ["--crop-size", "32x64", "--inference", "slide", "--steps", "1", "--batch-size", "2", "--workers", "0"]
    assert run_command(command) == 0
    task = json.loads((tmp_path / "a" / "task.json").read_text())
    assert task["options"]["window"] == [[32, 64], [21, 42]]
    dovetail.predict(run=tmp_path / "a", data=labelled / "images", out=tmp_path / "masks", workers=0)
    assert len(list((tmp_path / "masks").glob("*.png"))) == 5
    assert run_command(command) == 0
    assert "already finished" in capsys.readouterr().out
    asked = FinetuneSegmentOptions.given({"run": run.folder, "data": labelled, "crop_size": "32x64"})
    assert plan_of(asked, open_segmentation(labelled)).options.augmentation.crop_px == (32, 64)
