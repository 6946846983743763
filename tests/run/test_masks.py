"""Runs with masks and other side data: they resume in the same bits, and say what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import dovetail
from dovetail.heads import HeadSpec, VectorHeadSpec
from dovetail.objectives import Loss, Objective, ObjectiveSpec
from dovetail.recipe import OptimiserSpec, Recipe, Tap, Term
from dovetail.recipes import MOCO_VIEW, image_tap, pair_views
from dovetail.schedules import Moment
from dovetail.views.view import View
from tests.run.stopping import Stopping

SEGMENTS = {"segment_scale": 20.0, "segment_min_px": 50, "segment_side_px": 64}


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Return the exported weights of a run."""
    return load_file(folder / "exported" / "model.safetensors")


def equal(one: Path, other: Path) -> bool:
    """Return whether two runs exported the same bits."""
    first, second = weights_of(one), weights_of(other)
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("method", ["detcon", "decon-ml-detcon"])
def test_a_run_over_computed_masks_resumes_in_the_same_bits(
    photos: Path, pretrain: Callable[..., dovetail.Run], tmp_path: Path, method: str
) -> None:
    pytest.importorskip("skimage", reason="needs the extra `masks`")
    asked: dict[str, Any] = {"max_steps": 4, "method": method, "masks": "felzenszwalb", "recipe": SEGMENTS}
    pretrain(out=tmp_path / "whole", data=Stopping(photos, None), **asked)
    with pytest.raises(dovetail.DovetailError, match="with --resume to continue"):
        pretrain(out=tmp_path / "parts", data=Stopping(photos, 12), **asked)
    dovetail.pretrain(out=tmp_path / "parts", resume=True, data=Stopping(photos, None))
    assert equal(tmp_path / "whole", tmp_path / "parts")
    assert len(list((tmp_path / "parts" / "segments").rglob("*.png"))) == 12


def test_a_run_over_masks_in_a_folder_is_repeated_by_its_config(
    photos: Path, pretrain: Callable[..., dovetail.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "masks").mkdir()
    for number in range(12):
        quarters = np.kron(np.array([[0, 1], [number, 2]], dtype=np.uint8), np.ones((35, 45), dtype=np.uint8))
        Image.fromarray(quarters).save(tmp_path / "masks" / f"{number:02d}.png")
    monkeypatch.chdir(tmp_path)
    pretrain(out="run", method="detcon", masks="masks", report_every_minutes=5.0)  # the page shows views without masks
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["masks"] == str(tmp_path / "masks")
    pretrain(out="again", method="detcon", masks="masks", workers=2)
    assert equal(tmp_path / "run", tmp_path / "again")
    with pytest.raises(dovetail.DovetailError, match=r"has masks .*, which cannot be changed to 'felzenszwalb'"):
        dovetail.pretrain(out="run", resume=True, masks="felzenszwalb")
    assert dovetail.pretrain(out="run", resume=True).finished


def test_a_dataset_without_masks_is_refused(pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    with pytest.raises(dovetail.DovetailError, match=r"needs masks of the images; specify a folder with --masks, use"):
        pretrain(out=tmp_path / "a", method="detcon")
    assert not (tmp_path / "a" / "config.yaml").exists()
    with pytest.raises(dovetail.DovetailError, match="does not use masks; omit --masks"):
        pretrain(out=tmp_path / "b", method="byol", masks="felzenszwalb")


class WithTargets(Stopping):
    """Images with the features of a released teacher, which were computed before."""

    def __init__(self, photos: Path, after: int | None) -> None:
        super().__init__(photos, after)
        teacher = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
        pixels = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))) for path in self.paths]
        self.targets = [teacher(one.permute(2, 0, 1).float()[None] / 255)[0] for one in pixels]

    def __getitem__(self, index: int) -> Any:
        return {"image": super().__getitem__(index).convert("RGB"), "target": self.targets[index]}


@dataclass(frozen=True)
class MatchSpec(ObjectiveSpec):
    """Distillation: the student predicts the target of its image."""

    @property
    def side(self) -> tuple[str, ...]:
        return ("target", "index")

    def build(self, head: HeadSpec) -> Objective:
        return Match()


class Match(Objective):
    """The mean squared error of every view. The largest index is logged."""

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], views: Sequence[View], moment: Moment
    ) -> Loss:
        errors = [(made - view.side["target"]).square().mean() for made, view in zip(student, views, strict=True)]
        return Loss(torch.stack(errors).mean(), {"index": views[0].side["index"].max().float()})


def distillation(taps: Mapping[str, Tap], *, hidden: int = 16, image_size: int = 64) -> Recipe:
    """Return distillation from features in the dataset."""
    plan = replace(pair_views(MOCO_VIEW, image_size=image_size, min_scale=0.9), side=("target", "index"))
    return Recipe(
        name="distillation",
        terms=(Term("image", image_tap(taps), VectorHeadSpec(hidden, 12), MatchSpec()),),
        views=plan,
        optimiser=OptimiserSpec("adamw", 0.3, weight_decay=0.0),
        teacher_momentum=None,
        export="student",
    )


def test_distillation_from_a_released_teacher_needs_only_the_public_parts(photos: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"method": distillation, "max_steps": 15, "model": "timm/test_resnet", "image_size": 32}
    asked |= {"batch_size": 4, "workers": 0, "log_every_steps": 1, "report_every_minutes": 0.0, "accelerator": "cpu"}
    dovetail.pretrain(out=tmp_path / "whole", data=WithTargets(photos, None), **asked)
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    losses = [yaml.safe_load(line)["loss"] for line in lines]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    assert 3 <= max(yaml.safe_load(line)["parts"]["image/index"] for line in lines) <= 11
    with pytest.raises(dovetail.DovetailError, match="with --resume to continue"):
        dovetail.pretrain(out=tmp_path / "parts", data=WithTargets(photos, 30), **asked)
    dovetail.pretrain(out=tmp_path / "parts", resume=True, data=WithTargets(photos, None), method=distillation)
    assert equal(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(dovetail.DovetailError, match="side data 'target', but the items"):
        dovetail.pretrain(out=tmp_path / "plain", data=Stopping(photos, None), **asked)


def test_a_recipe_whose_views_lack_what_a_loss_needs_is_refused() -> None:
    taps = {"c5": Tap(8, 32, "map", "encoder")}
    recipe = distillation(taps)
    with pytest.raises(dovetail.RecipeError, match="needs the side data index; add the names to side"):
        replace(recipe, views=replace(recipe.views, side=("target",)))
