"""The published protocols are those of the papers' configurations, and their FCNs are built as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dovetail
from dovetail.transfer.finished import read_task
from dovetail.transfer.protocols import PROTOCOLS
from dovetail.transfer.readers import open_segmentation
from dovetail.transfer.segment import WithAuxiliary
from dovetail.transfer.segment_options import Window
from dovetail.transfer.segmenters import FCNSegmenter, build_segmenter
from dovetail.transfer.segmenting import Plan, plan_of
from dovetail.transfer.start import source_of
from tests.transfer.test_readers import ade20k, voc

ASKED: dict[str, Any] = {
    "run": None, "model": "timm/resnet18", "decoder": "auto", "steps": "auto", "batch_size": 16, "optimiser": "auto",
    "lr": "auto", "encoder_lr_scale": 1.0, "layer_decay": 1.0, "weight_decay": "auto", "warmup_steps": 0, "seed": 0,
    "crop_size": None, "output_stride": "auto", "auxiliary_weight": "auto", "distort": "auto", "batch_norm": "train",
    "inference": "auto", "accelerator": "cpu", "precision": "float32", "workers": 0, "seeds": 1,
}  # fmt: skip


def plan(data: Path, **changes: Any) -> Plan:
    return plan_of({**ASKED, **changes}, open_segmentation(data))


def test_ade20k(tmp_path: Path) -> None:
    found = plan(ade20k(tmp_path))
    options = found.options
    assert (options.optimiser, options.lr, options.weight_decay, options.steps) == ("sgd", 0.01, 5e-4, 80_000)
    assert (options.power, options.floor, options.drops, found.output_stride, found.window) == (0.9, 0.01, (), 8, None)
    assert options.augmentation.crop_px == (512, 512)
    assert options.augmentation.within_px == (2048, 512)
    assert options.augmentation.distort
    assert options.auxiliary_weight == 0.4
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
    protocol = PROTOCOLS["cityscapes"]
    assert (protocol.crop, protocol.steps, protocol.lr, protocol.window) == (769, 90_000, 0.01, Window(769, 513))


def test_the_pre_trained_decoder_fits_beneath_the_new_layers(tmp_path: Path) -> None:
    source = source_of(None, "timm/test_resnet+fcn")
    spec = PROTOCOLS["ade20k"].fcn
    model, target = build_segmenter(source, classes=3, fcn=spec)
    own = source.network("random").model
    assert target.state_dict().keys() == own.state_dict().keys()
    assert isinstance(model, nn.Module)


def test_the_auxiliary_head_can_be_asked_for_and_comes_back_in_predictions(tmp_path: Path) -> None:
    from tests.test_finetuning import FAST, mask_folder

    data = mask_folder(tmp_path / "data", images=3)
    dovetail.finetune_segment(
        model="timm/test_resnet+fcn", data=data, out=tmp_path / "out", start=["random"], steps=1, batch_size=2,
        crop_size=32, auxiliary_weight=0.4, distort="on", **FAST,
    )  # fmt: skip
    assert read_task(tmp_path / "out").options["fcn"]["auxiliary"]
    out = dovetail.predict(run=tmp_path / "out", data=data / "images", out=tmp_path / "found", **FAST)
    assert len(list(out.glob("*.png"))) == 3
    with pytest.raises(dovetail.DovetailError, match="has no auxiliary head"):
        dovetail.finetune_segment(
            model="smp/unet/resnet18", data=data, out=tmp_path / "o", start=["random"], auxiliary_weight=0.4, **FAST
        )
