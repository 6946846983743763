"""The scripts in examples/ are short and run, on tiny inputs and for two steps."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation.fcn import _fcn_resnet

import dovetail
from tests.data.photos import folder_of
from tests.downstream.test_finetune import mask_folder
from tests.test_docs import quick_pretrain

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with images, with two steps instead of a whole run."""
    folder_of(tmp_path / "photos", 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dovetail, "pretrain", functools.partial(quick_pretrain, dovetail.pretrain), raising=False)


def module_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_are_short(script: Path) -> None:
    assert len(script.read_text().splitlines()) < 40


def test_own_module(tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "own_module.py"), run_name="__main__")
    assert "2 kept as initialised: classifier.weight, classifier.bias" in capsys.readouterr().out


def test_own_method(tiny: None) -> None:
    module = module_of("own_method")
    dovetail.pretrain(data="photos", model="timm/test_resnet", method=module.lejepa, out="runs/lejepa")
    assert Path("runs/lejepa/exported/model.safetensors").is_file()


def test_the_page_on_methods_has_the_script() -> None:
    assert (EXAMPLES / "own_method.py").read_text() in (EXAMPLES.parent / "docs" / "add-method.md").read_text()


def test_own_loop() -> None:
    images = torch.rand(12, 3, 96, 96)
    losses = module_of("own_loop").train(images, steps=3, batch=4, side=32)
    assert len(losses) == 3
    assert all(np.isfinite(losses))


def test_twelve_bands(tiny: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "bands").mkdir()
    for index in range(4):
        np.save(tmp_path / "bands" / f"{index}.npy", rng.integers(0, 3000, (80, 80, 12), dtype=np.uint16))
    text = (EXAMPLES / "twelve_bands.py").read_text().replace("resnet50", "resnet18")
    (tmp_path / "bands.py").write_text(text)
    runpy.run_path(str(tmp_path / "bands.py"), run_name="__main__")
    assert Path("runs/bands/exported/model.safetensors").is_file()


def shallow_fcn(**options: Any) -> nn.Module:
    """Return torchvision's FCN on a ResNet with one block of a ResNet-50 in each stage."""
    encoder = ResNet(Bottleneck, [1, 1, 1, 1], replace_stride_with_dilation=[False, True, True])
    return _fcn_resnet(encoder, num_classes=21, aux=None)


@pytest.mark.parametrize("shallow", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_lora(shallow: bool, tiny: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if shallow:
        monkeypatch.setattr("torchvision.models.segmentation.fcn_resnet50", shallow_fcn)
    module = module_of("lora")
    model = module.build()
    before = {name: value.clone() for name, value in model.named_parameters()}
    dovetail.pretrain(data="photos", model=model, method="decon-sl", out="runs/lora")
    assert "have requires_grad=False" in capsys.readouterr().out
    dovetail.load_into(model, "runs/lora")
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert frozen
    assert all(torch.equal(before[name], model.get_parameter(name)) for name in frozen)
    moved: list[Any] = [name for name in before if not torch.equal(before[name], model.get_parameter(name))]
    assert any(".up." in name for name in moved)
    assert any(name.startswith("classifier.") for name in moved)


def test_yolo(tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ultralytics")
    runpy.run_path(str(EXAMPLES / "yolo.py"), run_name="__main__")
    assert "kept as initialised: model.22." in capsys.readouterr().out


def cells_of(notebook: Path) -> dict[str, str]:
    """Return the code of a notebook's cells by their ids."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    return {cell["id"]: "".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"}


def test_the_notebook_runs_from_images_to_loaded_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of(EXAMPLES / "quickstart.ipynb")
    folder_of(tmp_path / "photos", 4)
    mask_folder(tmp_path / "labelled", images=5)
    monkeypatch.chdir(tmp_path)
    given = ast.parse(cells.pop("parameters")).body
    names = {target.id for one in given if isinstance(one, ast.Assign) for target in one.targets}  # type: ignore[attr-defined]
    tiny = {"photos": "photos", "labelled": "labelled", "out": "out", "size": 64, "steps": 2, "tuning_steps": 1}
    assert names == tiny.keys()
    monkeypatch.setattr(dovetail, "pretrain", functools.partial(dovetail.pretrain, report_every_minutes=0.0))
    space: dict[str, Any] = dict(tiny)
    for name, code in cells.items():
        exec(compile(code.replace("batch_size=8", "batch_size=4"), f"cell {name}", "exec"), space)
    assert space["run"].finished
    assert space["sheet"].is_file()
    assert {row.setting["start"] for row in space["results"].rows} == {"random", "all"}
    assert len(space["model"].class_names) == 3
    report = space["report"]
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    assert set(report.fresh) == {"segmentation_head.0.weight", "segmentation_head.0.bias"}


def test_the_notebook_names_what_there_is_and_keeps_no_output() -> None:
    content = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in content["cells"])
    space: dict[str, Any] = {}
    exec(cells_of(EXAMPLES / "quickstart.ipynb")["parameters"], space)
    assert len([*(EXAMPLES / space["photos"]).glob("*.jpg")]) == 200
    assert (EXAMPLES / space["labelled"] / "masks" / "train").is_dir()
