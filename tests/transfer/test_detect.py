"""Targets are what the annotations say, detectors learn, and runs load into them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dovetail
from dovetail.errors import DovetailError
from dovetail.transfer.coco import CocoSet
from dovetail.transfer.detect import DetectOptions, finetune_detection, training_batch, training_item
from dovetail.transfer.detectors import DetectorSpec, build_detector
from dovetail.transfer.machine import Machine
from dovetail.transfer.start import source_of
from tests.transfer.coco_files import write_coco
from tests.transfer.pictures import exported_run

HERE = Machine("cpu", "float32", 0)


@pytest.fixture
def data(tmp_path: Path) -> CocoSet:
    return CocoSet.open(write_coco(tmp_path) / "annotations" / "instances_train2017.json")


def test_crowds_and_boxes_of_no_area_are_not_learned(data: CocoSet) -> None:
    image, target = training_item(data.images[0], flip=False, with_masks=True)
    assert target["boxes"].tolist() == [[3, 3, 23, 30], [8, 8, 14, 14]]
    assert target["labels"].tolist() == [1, 2]
    assert target["masks"].shape == (2, 40, 40)
    flipped, other = training_item(data.images[0], flip=True, with_masks=True)
    assert other["boxes"].tolist() == [[17, 3, 37, 30], [26, 8, 32, 14]]
    assert torch.equal(other["masks"].flip(2), target["masks"])
    assert torch.equal(flipped.flip(2), image)
    _, empty = training_item(data.images[1], flip=False, with_masks=True)
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, 40, 40)


def test_batches_are_a_function_of_seed_and_step(data: CocoSet) -> None:
    options = DetectOptions(steps=9, batch_size=2)
    first, again = (training_batch(data, options, 3) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first[0], again[0], strict=True))


def test_the_rate_warms_up_and_drops() -> None:
    options = DetectOptions(steps=90, lr=1.0, warmup_steps=9)
    assert [options.rate(step) for step in (0, 9, 59, 60, 80)] == pytest.approx([0.1, 1, 1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("model", "task", "head"),
    [
        ("timm/test_resnet", "boxes", "retinanet"),
        pytest.param("timm/test_resnet+fpn", "masks", "rcnn", marks=pytest.mark.slow),
        pytest.param("timm/test_vit+fpn", "boxes", "rcnn", marks=pytest.mark.slow),
        pytest.param("smp/unet/resnet18", "boxes", "rcnn", marks=pytest.mark.slow),
        pytest.param("torchvision/maskrcnn_resnet50_fpn", "boxes", "rcnn", marks=pytest.mark.slow),
    ],
)
def test_every_family_learns_from_all_images(model: str, task: str, head: str, data: CocoSet, tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run", model, image_size=64)
    spec = DetectorSpec(task, head, 2, (64,), 100)  # type: ignore[arg-type]
    torch.manual_seed(0)
    detector, target = build_detector(source_of(run, None), spec)
    report = source_of(run, None).load(target, "encoder")
    assert report is not None
    assert len(report.matched) > 10
    options = DetectOptions(steps=4, batch_size=3, lr=0.005, warmup_steps=0, with_masks=task == "masks")
    losses = finetune_detection(detector, data, options, machine=HERE)
    assert min(losses[1:]) < losses[0]


def test_the_pyramid_is_loaded_into_the_detector(tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run", "timm/test_resnet+fpn")
    detector, target = build_detector(source_of(run, None), DetectorSpec("masks", "rcnn", 2, (64,), 100))
    source_of(run, None).load(target, "all")
    weights, state = dovetail.load(run).state_dict(), detector.state_dict()
    for name, value in weights.items():
        assert torch.equal(state[f"backbone.{name}"], value)


def test_retinanet_has_no_masks(tmp_path: Path) -> None:
    source = source_of(None, "timm/test_resnet+fpn")
    with pytest.raises(DovetailError, match="RetinaNet has no masks"):
        build_detector(source, DetectorSpec("masks", "retinanet", 2, (64,), 100))
