"""Fine-tuned folders load, load into other models, and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file

import dovetail
from dovetail.downstream.finished import load_weights, read_task
from dovetail.downstream.rebuilt import build_finished
from dovetail.errors import ModelError, OptionsError
from tests.downstream.coco_files import write_coco
from tests.downstream.pictures import class_folder, exported_run
from tests.downstream.test_finetune import mask_folder

FAST: dict[str, Any] = {"accelerator": "cpu", "precision": "float32", "workers": 0, "batch_size": 2, "steps": 1}


def tuned(root: Path, kind: str, model: str) -> Path:
    """Return the folder of a model fine-tuned for one step."""
    run = exported_run(root / "run", model, image_size=64)
    out = root / kind
    if kind == "segment":
        dovetail.finetune_segment(run=run, data=mask_folder(root / "masks", images=5), out=out, crop_size=32, **FAST)
    elif kind == "detect":
        options: dict[str, Any] = {"image_size": 64, "head_width": 0.125, "proposals": 8}
        dovetail.finetune_detect(run=run, data=write_coco(root / "coco"), out=out, **options, **FAST)
    else:
        dovetail.finetune_classify(run=run, data=class_folder(root / "set"), out=out, **FAST)
    return out


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("segment", "smp/unet/tu-test_resnet"),
        ("segment", "timm/test_resnet+fpn(channels=16)"),
        ("classify", "timm/test_resnet"),
        ("detect", "timm/test_resnet+fpn(channels=16)"),
    ],
)
def test_a_fine_tuned_folder_loads(kind: str, model: str, tmp_path: Path) -> None:
    folder = tuned(tmp_path, kind, model)
    task = read_task(folder)
    loaded = dovetail.load(folder)
    assert loaded.class_names == task.names
    assert loaded.normalisation == {"mean": list(task.mean), "std": list(task.std)}
    built, _ = build_finished(task)
    load_weights(built, folder)
    pixels = torch.rand(2, 3, 64, 64)
    given = list(pixels) if kind == "detect" else pixels
    with torch.no_grad():
        first, second = loaded(given), built.eval()(given)
    if kind == "detect":
        assert all(torch.equal(one["boxes"], two["boxes"]) for one, two in zip(first, second, strict=True))
    else:
        assert first.shape[1] == len(task.names)
        assert torch.equal(first, second)
    assert isinstance(loaded, smp.Unet) == model.startswith("smp")


def test_a_fine_tuned_unet_loads_into_others_and_exports(tmp_path: Path) -> None:
    folder = tuned(tmp_path, "segment", "smp/unet/resnet18")
    classes = len(read_task(folder).names)
    weights = load_file(folder / "model.safetensors")
    same = smp.Unet("resnet18", encoder_weights=None, classes=classes)
    report = dovetail.load_into(same, folder)
    assert (report.missing, report.unexpected, report.mismatched, report.fresh) == ((), (), (), ())
    assert all(torch.equal(value, weights[f"body.{name}"]) for name, value in same.state_dict().items())
    other = smp.Unet("resnet18", encoder_weights=None, classes=classes + 4)
    report = dovetail.load_into(other, folder)
    assert set(report.fresh) == {"segmentation_head.0.weight", "segmentation_head.0.bias"}
    encoder = timm.create_model("resnet18", num_classes=7)
    assert len(dovetail.load_into(encoder, folder, part="encoder").matched) > 100
    dovetail.export(run=folder, to=tmp_path / "unet.safetensors", format="smp")
    same.load_state_dict(load_file(tmp_path / "unet.safetensors"), strict=True)


@pytest.mark.parametrize(
    "model",
    [
        *("smp/unet/resnet18", "torchvision/deeplabv3_mobilenet_v3_large"),
        pytest.param("torchvision/fcn_resnet50", marks=pytest.mark.slow),
    ],
)
def test_a_pre_trained_export_has_no_untrained_head(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = exported_run(tmp_path / "run", model, image_size=64)
    dovetail.export(run=run, to=tmp_path / "a.safetensors", format=model.partition("/")[0])  # type: ignore[arg-type]
    assert "without its untrained head" in capsys.readouterr().out
    found = load_file(tmp_path / "a.safetensors")
    info = json.loads((run / "exported/model.json").read_text())
    everything = load_file(run / "exported/model.safetensors")
    assert found.keys() < everything.keys()
    assert everything.keys() - found.keys() <= set(info["untrained"])
    if model.startswith("smp"):
        target = smp.Unet("resnet18", encoder_weights=None, classes=4)
        missing, unexpected = target.load_state_dict(found, strict=False)
        assert (missing, unexpected) == (["segmentation_head.0.weight", "segmentation_head.0.bias"], [])
    dovetail.export(run=run, to=tmp_path / "b.safetensors")
    assert load_file(tmp_path / "b.safetensors").keys() == everything.keys()


@pytest.mark.parametrize("model", ["timm/test_vit", "timm/test_vit+fpn(channels=16)"])
def test_a_vit_loads_for_images_of_another_size(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = exported_run(tmp_path / "run", model, image_size=64)
    name = "pos_embed" if model == "timm/test_vit" else "encoder.pos_embed"
    small, large = dovetail.load(run), dovetail.load(run, image_size=224)
    assert f"1 resampled to another grid: {name}" in capsys.readouterr().out
    before, after = small.state_dict(), large.state_dict()
    assert (before[name].shape[1], after[name].shape[1]) == (1 + 4**2, 1 + 14**2)
    assert all(torch.equal(value, after[key]) for key, value in before.items() if key != name)
    # The model for 64 px resamples its positions while it runs, in the same way.
    pixels = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        first, second = small.eval()(pixels), large.eval()(pixels)
    pairs = zip(first.values(), second.values(), strict=True) if isinstance(first, dict) else [(first, second)]
    for one, two in pairs:
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)
    assert dovetail.load_into(dovetail.load(run, image_size=128), run).resampled == (name,)
    assert dovetail.load(run, image_size=64).state_dict()[name].shape == before[name].shape
    with pytest.raises(dovetail.OptionsError, match="image_size is 4; it must be"):
        dovetail.load(run, image_size=4)


def test_a_fine_tuned_vit_loads_and_predicts_at_another_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = exported_run(tmp_path / "run", "timm/test_vit+fpn(channels=16)", image_size=64)
    masks = mask_folder(tmp_path / "masks", images=5, side=96)
    dovetail.finetune_segment(run=run, data=masks, out=tmp_path / "tuned", crop_size=96, **FAST)
    dovetail.predict(run=tmp_path / "tuned", data=masks / "images", out=tmp_path / "predicted", accelerator="cpu")
    assert len([*(tmp_path / "predicted").glob("*.png")]) == 5
    loaded = dovetail.load(tmp_path / "tuned", image_size=128)
    assert "resampled to another grid" in capsys.readouterr().out
    with torch.no_grad():
        assert loaded(torch.rand(1, 3, 128, 128)).shape == (1, 3, 32, 32)
    vectors = np.load(dovetail.embed(run=run, data=masks / "images", out=tmp_path / "e.npy", side_px=96))
    assert vectors.shape[0] == 5
    assert np.isfinite(vectors).all()


def test_a_cnn_loads_as_it_is_for_any_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = exported_run(tmp_path / "run", "timm/test_resnet+fpn(channels=16)", image_size=64)
    plain, sized = dovetail.load(run).state_dict(), dovetail.load(run, image_size=224).state_dict()
    assert all(torch.equal(value, sized[name]) for name, value in plain.items())
    assert "resampled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "part", "sentence"),
    [
        (
            "runs/wheat",
            "all",
            "load_into expects a torch.nn.Module as model, got str; build the model first, or use load, which builds "
            "it.",
        ),
        (torch.nn.Linear(1, 1), "enc", "There is no part 'enc'; did you mean 'encoder'?"),
        (torch.nn.Linear(1, 1), None, "There is no part 'None'; choose one of: all, decoder, encoder."),
    ],
)
def test_what_is_no_module_or_part_is_refused_before_the_weights_are_read(model: Any, part: Any, sentence: str) -> None:
    with pytest.raises((ModelError, OptionsError)) as caught:
        dovetail.load_into(model, "nowhere", part=part)
    assert str(caught.value) == sentence
