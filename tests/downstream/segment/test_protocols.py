"""The published protocols are those of the papers' configurations, and their FCNs are built as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import dovetail
from dovetail.downstream.finished import read_task
from dovetail.downstream.labels.readers import open_segmentation
from dovetail.downstream.options import FinetuneSegmentOptions
from dovetail.downstream.segment.job import Plan, plan_of
from dovetail.downstream.segment.loop import WithAuxiliary
from dovetail.downstream.segment.model import FCNSegmenter, FCNSpec, build_segmenter, upernet_blocks
from dovetail.downstream.segment.options import Window
from dovetail.downstream.segment.protocols import PROTOCOLS
from dovetail.downstream.start import source_of
from dovetail.downstream.table.trials import Trial
from dovetail.errors import DovetailError
from tests.downstream.labels.test_readers import ade20k, voc

ASKED: dict[str, Any] = {"model": "timm/resnet18", "accelerator": "cpu", "precision": "float32", "workers": 0}


def plan(data: Path, **changes: Any) -> Plan:
    return plan_of(FinetuneSegmentOptions(**ASKED | changes), open_segmentation(data))


def test_ade20k(tmp_path: Path) -> None:
    found = plan(ade20k(tmp_path))
    options = found.options
    assert (options.optimiser, options.lr, options.weight_decay, options.steps) == ("sgd", 0.01, 5e-4, 80_000)
    assert (options.power, options.floor, options.drops, found.output_stride, found.window) == (0.9, 0.01, (), 8, None)
    assert options.augmentation.crop_px == (512, 512)
    assert options.augmentation.within_px == (2048, 512)
    assert options.augmentation.distort
    assert options.auxiliary_weight == 0.4
    assert options.decay_vectors
    model, _ = found.model()
    assert isinstance(model, FCNSegmenter)
    assert model.body.out_channels == 512
    assert model.body.decoder.convs[0].conv.dilation == (1, 1)
    answer = model.train()(torch.randn(2, 3, 64, 64))
    assert isinstance(answer, WithAuxiliary)
    assert answer.logits.shape == answer.auxiliary.shape == (2, 150, 8, 8)
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 150, 8, 8)


def test_voc(tmp_path: Path) -> None:
    found = plan(voc(tmp_path))
    options = found.options
    assert (options.optimiser, options.lr, options.weight_decay, options.steps) == ("sgd", 0.003, 1e-4, 30_000)
    assert (options.drops, options.power, found.output_stride, found.window) == ((0.7, 0.9), 0.0, 16, None)
    assert options.augmentation.within_px == (2049, 513)
    assert (options.align_corners, options.augmentation.distort) == (True, False)
    model, _ = found.model()
    assert isinstance(model, FCNSegmenter)
    assert model.joined is model.auxiliary is None
    assert model.head[0].p == 0
    unet = plan(voc(tmp_path / "again"), model="smp/unet/resnet18").options
    assert (unet.optimiser, unet.lr, unet.align_corners, unet.floor) == ("adamw", 5e-4, False, 0.0)


def test_cityscapes_slides() -> None:
    protocol, training = PROTOCOLS["cityscapes"], PROTOCOLS["cityscapes"].training["fcn"]
    assert (protocol.crop, training.steps, training.lr, protocol.window) == (769, 90_000, 0.01, Window(769, 513))
    assert (protocol.align_corners, protocol.output_stride, training.drops) == (True, 16, (0.7, 0.9))
    assert (protocol.fcn, protocol.within_px) == (FCNSpec(dropout=0.0), (2049, 1025))


@pytest.mark.parametrize(
    ("decoder", "expected", "window"),
    [
        ("fpn", (40_000, 6e-5, 0.01, 1.0), None),
        ("upernet", (160_000, 3e-5, 0.05, 0.9), Window(512, 341)),
    ],
)
def test_vits_on_ade20k(decoder: str, expected: tuple[float, ...], window: Window | None, tmp_path: Path) -> None:
    found = plan(ade20k(tmp_path), model="timm/test_vit", decoder=decoder)
    options = found.options
    assert (options.steps, options.lr, options.weight_decay, options.layer_decay) == expected
    assert (options.optimiser, options.power, options.floor, options.decay_vectors) == ("adamw", 1.0, 0.0, False)
    assert (options.warmup_steps, options.augmentation.distort, found.window) == (1500, True, window)
    model, _ = found.model()
    head = model.get_submodule("head.classifier")
    assert isinstance(head, nn.Sequential)
    assert isinstance(head[0], nn.Dropout2d)
    assert head[0].p == 0.1


def test_upernet_is_as_wide_as_the_vit_and_takes_ibots_blocks() -> None:
    assert upernet_blocks(12) == [3, 5, 7, 11]
    assert upernet_blocks(24) == [7, 11, 15, 23]
    with torch.device("meta"):
        model, _ = build_segmenter(source_of(None, "timm/test_vit"), classes=2, decoder="upernet")
    width = timm.create_model("test_vit").embed_dim
    assert model.get_submodule("head.classifier.1").weight.shape == (2, width, 1, 1)


def test_a_protocols_warmup_fits_into_few_steps(tmp_path: Path) -> None:
    data, few = ade20k(tmp_path), Trial("random", 1.0, 3, (0,), False)
    asked = {"model": "timm/test_vit", "decoder": "upernet", "steps": 100}
    options = plan(data, **asked).options_for(few)
    assert (options.steps, options.warmup_steps, options.seed) == (100, 25, 3)
    assert plan(data, **asked, warmup_steps=60).options_for(few).warmup_steps == 60


def test_models_without_a_protocol_keep_to_the_rules(tmp_path: Path) -> None:
    found = plan(ade20k(tmp_path), model="smp/fpn/resnet18")
    options = found.options
    assert (options.steps, options.optimiser, options.lr, options.weight_decay) == (80_000, "adamw", 5e-4, 0.05)
    assert (options.decay_vectors, options.align_corners, found.output_stride) == (False, False, 32)
    assert options.augmentation.within_px == (2048, 512)
    with pytest.raises(DovetailError, match="does not support --output-stride"):
        plan(ade20k(tmp_path / "b"), model="smp/fpn/resnet18", output_stride=8)


@pytest.mark.parametrize("name", ["resnet50", "resnet18"])
@pytest.mark.parametrize("stride", [8, 16])
def test_dilation_is_timms_own(name: str, stride: int) -> None:
    """As in mmsegmentation with contracted dilation: a stage's first block keeps that of the stage before."""
    with torch.device("meta"):
        _, target = build_segmenter(source_of(None, f"timm/{name}"), classes=2, output_stride=stride)
        theirs = timm.create_model(name, num_classes=0, output_stride=stride)
    ours = dict(target.get_submodule("encoder").named_modules())
    for path, module in theirs.named_modules():
        if isinstance(module, nn.Conv2d):
            mine = ours[path]
            assert isinstance(mine, nn.Conv2d)
            assert (mine.dilation, mine.padding, mine.stride) == (module.dilation, module.padding, module.stride), path


def test_the_pre_trained_decoder_fits_beneath_the_new_layers(tmp_path: Path) -> None:
    source = source_of(None, "timm/test_resnet+fcn(channels=16)")
    spec = PROTOCOLS["ade20k"].fcn
    model, target = build_segmenter(source, classes=3, fcn=spec)
    own = source.network("random").model
    assert target.state_dict().keys() == own.state_dict().keys()
    assert isinstance(model, nn.Module)


def test_the_auxiliary_head_can_be_asked_for_and_comes_back_in_predictions(tmp_path: Path) -> None:
    from tests.downstream.test_finetune import FAST, mask_folder

    data = mask_folder(tmp_path / "data", images=3)
    dovetail.finetune_segment(
        model="timm/test_resnet+fcn(channels=16)", data=data, out=tmp_path / "out", start=["random"], steps=1,
        batch_size=2, crop_size=32, auxiliary_weight=0.4, distort="on", **FAST,
    )  # fmt: skip
    assert read_task(tmp_path / "out").options["fcn"]["auxiliary"]
    out = dovetail.predict(run=tmp_path / "out", data=data / "images", out=tmp_path / "found", **FAST)
    assert len(list(out.glob("*.png"))) == 3
    with pytest.raises(dovetail.DovetailError, match="has no auxiliary head"):
        dovetail.finetune_segment(
            model="smp/unet/resnet18", data=data, out=tmp_path / "o", start=["random"], auxiliary_weight=0.4, **FAST
        )
