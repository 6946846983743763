"""Weights that are no numbers are never exported, trained from, or scored; the first such tensor is named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import dovetail
from dovetail.cli import run as run_command
from dovetail.downstream.finished import load_weights
from dovetail.errors import DovetailError, WeightsError
from dovetail.files.finite import check_finite
from tests.downstream.pictures import class_folder

MODEL = "timm/test_resnet+fpn(channels=16)"
TINY = f"--model {MODEL} --image-size 64 --batch-size 4 --workers 0 --precision 32-true --accelerator cpu"
SMALL = "--report-every-minutes 0 --recipe.hidden 16 --recipe.dim 8"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(8):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    command = f"pretrain --data {photos} --out {out} --method byol --max-steps 1 {TINY} {SMALL}"
    assert run_command(command.split()) == 0
    return out


class Overflowing(torch.optim.SGD):
    """An optimiser whose steps leave the range of numbers."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(1e38).mul_(1e38)
        return loss


@pytest.mark.parametrize("skipped", [0, 10])
def test_a_run_that_ends_in_nan_exports_nothing(photos: Path, tmp_path: Path, skipped: int) -> None:
    out = tmp_path / "run"
    sentence = "The model after step 1 contains NaN or infinite values, first in '.*try a lower learning rate"
    with pytest.raises(DovetailError, match=sentence):
        dovetail.pretrain(
            data=photos,
            out=out,
            model="timm/test_vit",
            method="dino",
            image_size=64,
            batch_size=4,
            max_steps=1,
            skip_nonfinite_steps=skipped,
            optimiser=Overflowing,
            accelerator="cpu",
            workers=0,
            report_every_minutes=0,
        )
    assert not (out / "exported").exists()
    assert list((out / "checkpoints").glob("*.ckpt")) == []


def spoiled(run: Path, folder: Path, ending: str, value: float) -> tuple[Path, str]:
    """Return a copy of a run's weights with one value in a tensor whose name ends so, and that tensor's name."""
    weights = load_file(run / "exported" / "model.safetensors")
    name = next(name for name in weights if name.endswith(ending))
    weights[name].view(-1)[0] = value
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "model.json").write_bytes((run / "exported" / "model.json").read_bytes())
    return folder / "model.safetensors", name


@pytest.mark.parametrize(("ending", "value"), [("running_var", math.nan), ("weight", math.inf), ("bias", -math.inf)])
def test_weights_with_nan_are_not_read(
    run: Path, photos: Path, tmp_path: Path, ending: str, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    path, name = spoiled(run, tmp_path / "spoiled", ending, value)
    sentence = f"{path} contains NaN or infinite values, first in {name!r}"
    for read in (dovetail.load, lambda path: dovetail.load_into(dovetail.load(run), path)):
        with pytest.raises(DovetailError, match="NaN or infinite values, first in") as caught:
            read(path)
        assert sentence in str(caught.value)
    commands = [
        f"pretrain --data {photos} --out {tmp_path / 'new'} --method byol --max-steps 1 --init {path} {TINY} {SMALL}",
        f"export --run {path.parent} --format encoder --to {tmp_path / 'encoder.safetensors'}",
        f"embed --run {path.parent} --data {photos} --out {tmp_path / 'vectors.npy'}",
    ]
    for command in commands:
        assert run_command(command.split()) == 2, command
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "encoder.safetensors").exists()
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_fine_tuning_to_nan_reports_no_score(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = class_folder(tmp_path / "data"), tmp_path / "out"
    command = f"finetune classify --run {run} --data {data} --out {out} --steps 3 --batch-size 4 --image-size 64"
    for lr in ("1e308", "1e30"):
        assert run_command([*command.split(), "--lr", lr, "--accelerator", "cpu", "--workers", "0"]) == 2
        shown = capsys.readouterr().err
        assert "lr" in shown or "not a finite number" in shown
        assert "Traceback" not in shown
    assert not list(out.glob("*.safetensors"))
    assert not (out / "results.json").exists()
    assert not (out / "trials.jsonl").exists()


def test_a_fine_tuned_model_with_nan_is_not_used(run: Path, tmp_path: Path) -> None:
    path, name = spoiled(run, tmp_path / "spoiled", "weight", math.nan)
    model: Any = dovetail.load(run)
    with pytest.raises(DovetailError, match="NaN or infinite values") as caught:
        load_weights(model, path.parent)
    assert repr(name) in str(caught.value)
    assert json.loads((path.parent / "model.json").read_text())


@pytest.mark.parametrize(
    "odd", [torch.zeros(2, 2).to_sparse(), torch.zeros(1).expand(1 << 38)], ids=["sparse", "expanded to a terabyte"]
)
def test_tensors_that_are_not_dense_are_refused(odd: torch.Tensor) -> None:
    with pytest.raises(WeightsError, match="'odd'"):
        check_finite({"fine": torch.zeros(1).expand(8), "odd": odd}, "A file", "give another")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_one_odd_value_anywhere_is_found(odd: float, dtype: torch.dtype) -> None:
    largest = torch.full((3, 5, 7), torch.finfo(dtype).max, dtype=dtype)
    largest[0] *= -1
    check_finite({"weight": largest}, "It", "stop")  # although the range is wider than the type's
    for place in ((0, 0, 0), (1, 2, 3), (2, 4, 6)):
        value = largest.clone()
        value[place] = odd
        for given in (value, value.transpose(0, 2), value[place]):
            with pytest.raises(WeightsError, match="contains NaN or infinite values, first in 'weight'"):
                check_finite({"first": largest, "weight": given}, "It", "stop")
