"""Runs of the user's own module are loaded, embedded, evaluated, fine-tuned and used."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dovetail
from dovetail.downstream.options import FinetuneClassifyOptions
from dovetail.networks.build import build_network
from dovetail.options import body
from dovetail.weights.exported import save_exported
from tests.downstream.coco_files import write_coco
from tests.downstream.pictures import class_folder
from tests.downstream.test_finetune import mask_folder

FAST: dict[str, Any] = {"accelerator": "cpu", "precision": "float32", "workers": 0}
PARTS = {"encoder": "backbone", "decoder": "neck"}


class Stages(nn.Module):
    """Maps of strides 4, 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 12, 16, 24)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 4 if a == 3 else 2, 1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        )

    def forward(self, pixels: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            pixels = stage(pixels)
            maps.append(pixels)
        return maps


class Own(nn.Module):
    """An encoder, a decoder and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Stages()
        self.neck = Neck()
        self.classifier = nn.Conv2d(10, 5, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.neck(self.backbone(pixels)))
        return logits


class Neck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fuse = nn.Sequential(OrderedDict(conv=nn.Conv2d(20, 10, 3, padding=1), act=nn.ReLU()))

    def forward(self, maps: list[Tensor]) -> Tensor:
        fused: Tensor = self.fuse(torch.cat([maps[0], nn.functional.interpolate(maps[1], scale_factor=2)], 1))
        return fused


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    torch.manual_seed(1)
    network = build_network(Own(), image_size=64, **PARTS)
    network.prune(["c5", "p2"])
    save_exported(network, folder / "exported", method="test", extra={}, mean=(0.5,) * 3, std=(0.25,) * 3)
    return folder


def weights_of(run: Path) -> dict[str, Tensor]:
    model = Own()
    dovetail.load_into(model, run)
    return {name: value for name, value in model.state_dict().items() if not name.startswith("classifier.")}


def test_load_fills_a_copy_of_the_module(run: Path) -> None:
    model = Own()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loaded = dovetail.load(run, model=model)
    assert isinstance(loaded, Own)
    state = loaded.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in weights_of(run).items())
    assert torch.equal(state["classifier.weight"], before["classifier.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(dovetail.DovetailError, match="pass your module as model"):
        dovetail.load(run)
    with pytest.raises(dovetail.OptionsError, match="module for this size"):
        dovetail.load(run, model=model, image_size=32)
    by_path = dovetail.load(run, model=f"{__name__}:Own")
    assert isinstance(by_path, Own)


def test_embeddings_are_those_of_the_encoder(run: Path, tmp_path: Path) -> None:
    images = class_folder(tmp_path / "set", train=2, val=1) / "train"
    with pytest.raises(dovetail.ModelError, match="pass the module as model"):
        dovetail.embed(run=run, data=images, out=tmp_path / "e.npy", accelerator="cpu")
    given: dict[str, Any] = {"run": run, "data": images, "accelerator": "cpu", "model": Own()}
    found = np.load(dovetail.embed(**given, out=tmp_path / "e.npy"))
    assert found.shape == (6, 24)
    other = np.load(dovetail.embed(**given, out=tmp_path / "f.npy", encoder="backbone.stages.1"))
    assert other.shape == (6, 12)
    with pytest.raises(dovetail.OptionsError, match="pass the module as model"):
        dovetail.embed(run=run, data=images, out=tmp_path / "g.npy", accelerator="cpu", encoder="backbone")


def test_evaluation_reads_both_parts(run: Path, tmp_path: Path) -> None:
    results = dovetail.evaluate_dense(
        run=run, model=Own(), data=mask_folder(tmp_path / "m", images=5), out=tmp_path / "d", steps=2,
        protocols=("linear",), image_size=64, **FAST,
    )  # fmt: skip
    assert results is not None
    assert [row.setting["at"] for row in results.rows] == ["encoder", "decoder"]
    assert "encoder is c5, decoder is p2" in " ".join(results.notes)


def tuned(kind: str, run: Path, root: Path, **options: Any) -> Path:
    """Fine-tune for one step and return the folder."""
    given: dict[str, Any] = {"run": run, "model": Own(), "out": root / "tuned", "steps": 1, "batch_size": 2, **FAST}
    given |= options
    if kind == "segment":
        dovetail.finetune_segment(data=mask_folder(root / "m", images=5), crop_size=32, **given)
    elif kind == "detect":
        dovetail.finetune_detect(data=write_coco(root / "c"), image_size=64, head_width=0.125, proposals=8, **given)
    else:
        dovetail.finetune_classify(data=class_folder(root / "s"), **given)
    return root / "tuned"


@pytest.mark.parametrize("kind", ["segment", "detect", "classify"])
def test_fine_tuning_and_what_follows(kind: str, run: Path, tmp_path: Path) -> None:
    folder = tuned(kind, run, tmp_path, lr=1e-9)
    loaded = dovetail.load(folder, model=Own())
    assert not loaded.training
    assert len(loaded.class_names) > 1
    into = Own()
    report = dovetail.load_into(into, folder)
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    start, state = weights_of(run), into.state_dict()
    for name, value in start.items():
        if name.endswith("weight") and not (kind != "segment" and name.startswith("neck.")):
            torch.testing.assert_close(value, state[name], atol=1e-4, rtol=1e-3)
    with pytest.raises(dovetail.DovetailError, match="pass the module as model"):
        dovetail.load(folder)
    images = {"segment": "m/images", "detect": "c/val2017", "classify": "s/val"}[kind]
    out = dovetail.predict(
        run=folder, model=Own(), data=tmp_path / images, out=tmp_path / "predicted", accelerator="cpu", workers=0
    )
    assert any(Path(out).iterdir())


def test_detectors_need_four_maps(tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": Own(), "encoder": "backbone.stages.1", "out": tmp_path / "o", **FAST}
    with pytest.raises(dovetail.ModelError, match="maps at strides 4, 8, 16 and 32"):
        dovetail.finetune_detect(data=write_coco(tmp_path / "c"), image_size=64, steps=1, **given)
    with pytest.raises(dovetail.OptionsError, match="specify the path of its encoder"):
        dovetail.finetune_classify(data=class_folder(tmp_path / "s"), model=Own(), out=tmp_path / "o", **FAST)


def test_no_file_names_a_module() -> None:
    options = FinetuneClassifyOptions.given({"model": "os:system", "run": "runs/own"}, from_file=["model"])
    with pytest.raises(dovetail.OptionsError, match="os:system is Python code, which a file may not select"):
        body(dovetail.finetune_classify)(options)


def test_frozen_parameters_stay_frozen(run: Path, tmp_path: Path) -> None:
    model = Own()
    model.backbone.requires_grad_(False)
    folder = tuned("segment", run, tmp_path, model=model, lr=0.1)
    into, start = Own(), weights_of(run)
    dovetail.load_into(into, folder)
    moved = [name for name, value in into.named_parameters() if name in start and not torch.equal(value, start[name])]
    assert moved == ["neck.fuse.conv.weight", "neck.fuse.conv.bias"]
