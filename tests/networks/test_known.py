"""Model names that are looked up in the libraries' source files, without importing the libraries."""

from __future__ import annotations

from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
from segmentation_models_pytorch.base import SegmentationModel
from timm.models._registry import _model_entrypoints

from dovetail.errors import ModelError
from dovetail.networks import build, known
from dovetail.networks.known import (
    ARCHITECTURES,
    DECODERS,
    list_models,
    occurs,
    refuse_unknown,
    smp_encoders,
    source_of,
    timm_former_names,
    timm_names,
)


def test_the_names_in_the_files_are_those_of_the_libraries() -> None:
    assert timm_names() == {*timm.list_models()}
    assert timm_former_names() == _model_entrypoints.keys() - {*timm.list_models()}
    assert smp_encoders() == {*smp.encoders.get_encoder_names()}
    assert tuple(build.DECODERS) == DECODERS
    listed = [name.removeprefix("timm/") for name in list_models("timm/*") if "+" not in name]
    assert listed == timm.list_models()
    classes = {name for name, value in vars(smp).items() if isinstance(value, type)}
    assert {name for name in classes if issubclass(vars(smp)[name], SegmentationModel)} == {*ARCHITECTURES.values()}


def test_no_name_that_a_library_takes_is_refused() -> None:
    older = sorted(_model_entrypoints.keys() - {*timm.list_models()})
    for name in [*timm.list_models(), *older]:
        refuse_unknown(f"timm/{name}")
    for name in [*timm.list_pretrained()[:50], "resnet50.a1_in1k"]:
        refuse_unknown(f"timm/{name}+fpn(channels=16)")
        refuse_unknown(f"timm/{name}+fpn")
    for name in smp.encoders.get_encoder_names():
        refuse_unknown(f"smp/Unet/{name}")
    for name in (
        *("smp/dpt/vit_tiny_patch16_224", "smp/fpn/tu-resnet50.a1_in1k", "torchvision/fcn_resnet50"),
        *("package.module:Class", "timm.create_model('mine')+fpn", "smp.FPN(encoder_name='mine')"),
        *("timm/hf-hub:me/mine", "smp/unet"),
    ):
        refuse_unknown(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm/resnett50+fpn", "no model 'timm/resnett50\\+fpn'; did you mean 'timm/resnet50\\+fpn'"),
        ("timm/", "list the names"),
        ("timm/resnet", "no model 'timm/resnet'; did you mean 'timm/resnet18'"),  # a word in its files
        ("timm/vit+fpn", "no model 'timm/vit\\+fpn'; did you mean"),
        ("smp/unet/resnett50", "did you mean 'smp/unet/resnet50'"),
        ("smp/unet/tu-resnett50", "did you mean 'smp/unet/tu-resnet50'"),
        ("smp/unett/resnet50", "did you mean 'smp/unet/resnet50'"),
        ("torchvision/fcn_resnet5", "did you mean 'torchvision/fcn_resnet50'"),
        ("resnet50", "did you mean 'timm/resnet50'"),
        ("fcn_resnet50", "did you mean 'torchvision/fcn_resnet50'"),
        ("unet/resnet50", "did you mean 'smp/unet/resnet50'"),
        ("zzz", "use 'timm/<name>'"),
    ],
)
def test_a_misspelt_name_is_refused_with_a_close_one(name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        refuse_unknown(name)


def test_nothing_is_refused_without_source_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "without_sources").mkdir()
    (tmp_path / "without_sources" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(known.FOLDERS, "without_sources", "models")
    assert source_of("without_sources") == ""
    assert occurs("anything", "without_sources")
