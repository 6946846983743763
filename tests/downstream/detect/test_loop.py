"""Targets are what the annotations say, detectors learn, and runs load into them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import dovetail
from dovetail.downstream.detect.job import faults_of_objects, plan_of
from dovetail.downstream.detect.loop import (
    DetectOptions,
    detections_of,
    finetune_detection,
    tell_objects,
    training_batch,
    training_item,
)
from dovetail.downstream.detect.model import BoxHead, DetectorSpec, build_detector
from dovetail.downstream.labels.coco import CocoSet
from dovetail.downstream.labels.coco_doubts import objects_at_edges, undrawn_masks
from dovetail.downstream.machine import Machine
from dovetail.downstream.options import FinetuneDetectOptions
from dovetail.downstream.start import source_of
from dovetail.errors import DovetailError
from dovetail.train.batch_norm import JointBatchNorm
from tests.downstream.coco_files import write_coco
from tests.downstream.pictures import exported_run

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


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_that_are_empty_in_float32_are_not_learned(flip: bool, data: CocoSet) -> None:
    image = data.images[0]
    thin = [replace(image.objects[0], box=box) for box in ((30.0, 3.0, 1e-6, 4.0), (0.0, 3.0, 1e-6, 4.0))]
    _, target = training_item(replace(image, objects=(*image.objects, *thin)), flip=flip, with_masks=False)
    boxes = target["boxes"]
    assert len(boxes) == 2
    assert bool((boxes[:, 2:] > boxes[:, :2]).all())


def outside(data: CocoSet) -> CocoSet:
    """Return one image with a good box, one that reaches out, one wholly outside, and one that leaves half a pixel."""
    image = data.images[0]
    boxes = ((4.0, 4.0, 12.0, 12.0), (30.0, -6.0, 20.0, 16.0), (4000.0, 50.0, 8.0, 8.0), (39.5, 3.0, 9.0, 9.0))
    objects = tuple(replace(image.objects[0], box=box, segmentation=None) for box in boxes)
    return replace(data, images=(replace(image, objects=objects),))


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_are_clipped_to_their_image(flip: bool, data: CocoSet) -> None:
    _, target = training_item(outside(data).images[0], flip=flip, with_masks=False)
    expected = [[4, 4, 16, 16], [30, 0, 40, 10]]
    assert target["boxes"].tolist() == ([[24, 4, 36, 16], [0, 0, 10, 10]] if flip else expected)


@pytest.mark.parametrize("head", ["rcnn", "retinanet"])
def test_a_box_outside_of_its_image_makes_no_anchor_an_object(head: Any, data: CocoSet) -> None:
    detector, _ = build_detector(
        source_of(None, "timm/test_resnet+fpn(channels=16)"), DetectorSpec("boxes", head, 2, (64,), 100)
    )
    images, targets = training_batch(outside(data), DetectOptions(steps=1, batch_size=1), 0)
    sent, placed = detector.transform(images, targets)
    maps = list(detector.backbone(sent.tensors).values())
    if head == "rcnn":
        anchors = detector.rpn.anchor_generator(sent, maps)
        matched = detector.rpn.assign_targets_to_anchors(anchors, placed)[0][0] == 1
    else:
        anchors = detector.anchor_generator(sent, maps)
        overlap = torchvision.ops.box_iou(placed[0]["boxes"], anchors[0])
        matched = detector.proposal_matcher(overlap) >= 0
    assert 0 < int(matched.sum()) < len(matched) / 4


def test_what_is_clipped_or_left_out_at_the_edges_is_counted(data: CocoSet, caplog: pytest.LogCaptureFixture) -> None:
    tell_objects(outside(data), DetectOptions(steps=1))
    assert "1 object is clipped to the image; 2 objects are left out of training" in caplog.text
    image = data.images[0]
    beyond = [[-9.0, 3.0, -2.0, 3.0, -2.0, 9.0, -9.0, 9.0]]
    changed = replace(image, objects=(image.objects[0], replace(image.objects[1], segmentation=beyond)))
    one = replace(data, images=(changed,))
    assert "1 object is left out of training, because no pixel of the mask" in objects_at_edges(
        one, with_masks=True, learned=True
    )
    assert "1 object is counted as missed, because no pixel" in objects_at_edges(one, with_masks=True, learned=False)
    assert undrawn_masks(one).endswith("1 mask without a pixel inside the image skipped.")
    assert undrawn_masks(data) == ""


def test_objects_with_a_box_alone_are_told_where_masks_are_learned(
    data: CocoSet, caplog: pytest.LogCaptureFixture
) -> None:
    tell_objects(data, DetectOptions(steps=1, with_masks=True))  # what has neither area nor mask is no object
    assert "but no mask" not in caplog.text
    objects = tuple(replace(one, segmentation=None) for one in data.images[0].objects)
    changed = replace(data, images=(replace(data.images[0], objects=objects), data.images[2]))
    spec = DetectorSpec("masks", "rcnn", 2, (64,), 100, head_width=0.125, proposals=8)
    detector, _ = build_detector(source_of(None, "timm/test_resnet+fpn(channels=16)"), spec)
    for with_masks in (False, True):
        finetune_detection(detector, changed, DetectOptions(steps=0, with_masks=with_masks), machine=HERE)
    assert caplog.text.count("2 objects with a box but no mask") == 1
    assert str(data.path) in caplog.text


def test_batches_are_a_function_of_seed_and_step(data: CocoSet) -> None:
    options = DetectOptions(steps=9, batch_size=2)
    first, again = (training_batch(data, options, 3) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first[0], again[0], strict=True))


def test_the_rate_warms_up_and_drops() -> None:
    options = DetectOptions(steps=90, warmup_steps=9)
    assert [options.rate_share(step) for step in (0, 9, 59, 60, 80)] == pytest.approx([0.1, 1, 1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("model", "task", "head"),
    [
        ("timm/test_resnet", "boxes", "retinanet"),
        pytest.param("timm/test_resnet+fpn(channels=16)", "masks", "rcnn", marks=pytest.mark.slow),
        pytest.param("timm/test_vit+fpn(channels=16)", "boxes", "rcnn", marks=pytest.mark.slow),
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
    run = exported_run(tmp_path / "run", "timm/test_resnet+fpn(channels=16)")
    detector, target = build_detector(source_of(run, None), DetectorSpec("masks", "rcnn", 2, (64,), 100))
    source_of(run, None).load(target, "all")
    weights, state = dovetail.load(run).state_dict(), detector.state_dict()
    for name, value in weights.items():
        assert torch.equal(state[f"backbone.{name}"], value)


def test_an_encoder_of_smp_is_loaded_without_the_layers_after_its_last_map(tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run", "smp.FPN('tu-tf_mobilenetv3_small_minimal_100', decoder_pyramid_channels=16)")
    source = source_of(run, None)
    detector, target = build_detector(source, DetectorSpec("masks", "rcnn", 2, (64,), 100))
    report = source.load(target, "encoder")
    assert report is not None
    assert {name.split(".")[1] for name in report.fresh if name.startswith("encoder.")} == {"conv_head"}
    weights, state = dovetail.load(run).state_dict(), detector.state_dict()
    loaded = [name for name in weights if name.startswith("encoder.model.") and "num_batches" not in name]
    for name in loaded:
        assert torch.equal(state[f"backbone.{name.replace('model.', '')}"], weights[name])
    assert len(loaded) > 100


def test_retinanets_coarse_levels_are_convolved() -> None:
    detector, _ = build_detector(source_of(None, "timm/test_resnet"), DetectorSpec("boxes", "retinanet", 2, (64,), 100))
    levels = detector.get_submodule("backbone")(torch.randn(1, 3, 128, 128))
    assert [level.shape[-1] for level in levels.values()] == [16, 8, 4, 2, 1]
    names = {name for name, _ in detector.named_parameters()}
    assert {"backbone.coarser.p6.weight", "backbone.coarser.p7.weight"} <= names


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("timm/test_resnet", ("sgd", 0.005, 1e-4, (2 / 3, 8 / 9))),
        ("timm/test_vit", ("adamw", 1e-4, 0.05, (2 / 3, 11 / 12))),
    ],
)
def test_the_schedule_of_each_family(model: str, expected: tuple[object, ...], data: CocoSet) -> None:
    asked = FinetuneDetectOptions(model=model, accelerator="cpu", precision="float32", workers=0, batch_size=4)
    plan = plan_of(asked, data, data)
    options = plan.options
    assert (options.optimiser, options.lr, options.weight_decay, options.drops) == expected
    assert (plan.spec.sides, plan.spec.longest) == ((640, 672, 704, 736, 768, 800), 1333)


@pytest.mark.parametrize(
    ("given", "advised"),
    [
        ({}, "--image-size 320 --batch-size 4 --head-width 0.25 --proposals 64"),
        ({"head": "retinanet"}, "--image-size 320 --batch-size 4"),
        ({"batch_size": 1, "head_width": 0.25}, "--image-size 320 --proposals 64"),
        ({"image_size": 320, "batch_size": 4}, ""),
    ],
)
def test_slow_steps_without_a_gpu_come_with_options_that_make_them_faster(
    given: dict[str, Any], advised: str, data: CocoSet
) -> None:
    asked = FinetuneDetectOptions(model="timm/test_resnet+fpn(channels=16)", accelerator="cpu", **given)
    plan = plan_of(asked, data, data)
    assert plan.advice() == (
        advised and f"Without a GPU, each of these steps may take minutes; {advised} makes them faster."
    )
    assert replace(plan, where=Machine("cuda", "float32", 0)).advice() == ""


def test_sets_without_objects_or_masks_are_faulty(data: CocoSet) -> None:
    assert faults_of_objects(data, data, "masks") == []
    crowd = tuple(one for one in data.images[0].objects if one.crowd or not one.has_area)
    only_crowds = replace(data, images=(replace(data.images[0], objects=crowd), data.images[1]))
    (fault,) = faults_of_objects(data, only_crowds, "boxes")
    assert "has no objects to evaluate on in 2 images" in fault
    images = (replace(one, objects=tuple(replace(o, segmentation=None) for o in one.objects)) for one in data.images)
    boxes = replace(data, images=tuple(images))
    assert faults_of_objects(data, boxes, "boxes") == []
    (fault,) = faults_of_objects(boxes, data, "masks")
    assert "has no masks to train on, only boxes; use --task boxes" in fault


def test_retinanet_has_no_masks(tmp_path: Path) -> None:
    source = source_of(None, "timm/test_resnet+fpn(channels=16)")
    with pytest.raises(DovetailError, match="RetinaNet does not support masks"):
        build_detector(source, DetectorSpec("masks", "retinanet", 2, (64,), 100))


def test_the_heads_of_the_dense_ssl_protocol() -> None:
    spec = DetectorSpec("masks", "rcnn", 2, (64,), 100, "4conv1fc", "sync")
    with torch.device("meta"):
        model, _ = build_detector(source_of(None, "timm/test_resnet+fpn(channels=16)"), spec)
        plain, _ = build_detector(
            source_of(None, "timm/test_resnet+fpn(channels=16)"), DetectorSpec("masks", "rcnn", 2, (64,), 100)
        )
    heads, others = model.roi_heads, plain.roi_heads
    assert [name for name, one in heads.box_head.named_modules() if isinstance(one, nn.Conv2d)] == [
        f"{index}.0" for index in range(4)
    ]
    assert [one.out_features for one in heads.box_head.modules() if isinstance(one, nn.Linear)] == [1024]
    for head in (heads.box_head, heads.mask_head):
        assert sum(isinstance(one, JointBatchNorm) for one in head.modules()) == 4
    assert not any(isinstance(one, JointBatchNorm) for one in others.modules())
    assert [one.out_features for one in others.box_head.modules() if isinstance(one, nn.Linear)] == [1024, 1024]


@pytest.mark.parametrize("model", ["timm/test_resnet+fpn(channels=16)", "torchvision/fasterrcnn_resnet50_fpn"])
@pytest.mark.parametrize("box_head", ["auto", "4conv1fc"])
def test_narrow_heads(model: str, box_head: BoxHead) -> None:
    spec = DetectorSpec("masks", "rcnn", 2, (64,), 100, box_head, head_width=0.125, proposals=32)
    with torch.device("meta"):
        detector, _ = build_detector(source_of(None, model), spec)
    heads: Any = detector.roi_heads
    layers = [one for one in heads.box_head.modules() if isinstance(one, nn.Linear)]
    assert {one.out_features for one in layers} == {128}
    assert [one.out_features for one in heads.box_predictor.children()] == [3, 12]
    assert {one.out_channels for one in heads.mask_head.modules() if isinstance(one, nn.Conv2d)} == {32}
    assert heads.mask_predictor.mask_fcn_logits.out_channels == 3
    assert heads.fg_bg_sampler.batch_size_per_image == 32
    assert (box_head == "4conv1fc") is any(isinstance(one, nn.Conv2d) for one in heads.box_head.modules())


def test_narrow_heads_learn(data: CocoSet) -> None:
    spec = DetectorSpec("masks", "rcnn", 2, (64,), 100, head_width=0.125, proposals=8)
    torch.manual_seed(0)
    detector, _ = build_detector(source_of(None, "timm/test_resnet+fpn(channels=16)"), spec)
    options = DetectOptions(steps=2, batch_size=1, lr=0.001, warmup_steps=0, with_masks=True)
    assert min(finetune_detection(detector, data.subset([0, 1]), options, machine=HERE)) > 0
    found = detections_of(detector, data, machine=HERE)
    assert found
    assert all("segmentation" in one for one in found)


def test_the_heads_learn_from_images_with_and_without_objects(data: CocoSet) -> None:
    spec = DetectorSpec("masks", "rcnn", 2, (64,), 100, "4conv1fc", "sync", head_width=0.25, proposals=64)
    torch.manual_seed(0)
    detector, _ = build_detector(source_of(None, "timm/test_resnet+fpn(channels=16)"), spec)
    options = DetectOptions(steps=2, batch_size=1, lr=0.001, warmup_steps=0, with_masks=True, batch_norm="frozen")
    before = detector.state_dict()["backbone.encoder.bn1.running_mean"].clone()
    losses = finetune_detection(detector, data.subset([0, 1]), options, machine=HERE)
    assert min(losses) > 0
    assert float(detector.state_dict()["roi_heads.mask_head.0.1.running_mean"].abs().max()) > 0
    assert all(bool(value.isfinite().all()) for value in detector.state_dict().values())
    assert torch.equal(detector.state_dict()["backbone.encoder.bn1.running_mean"], before)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (DetectorSpec("boxes", "retinanet", 2, (64,), 100, "4conv1fc"), "RetinaNet does not support --box-head"),
        (DetectorSpec("boxes", "retinanet", 2, (64,), 100, head_width=0.5), "RetinaNet does not support --box-head"),
        (DetectorSpec("boxes", "retinanet", 2, (64,), 100, proposals=64), "RetinaNet does not support --box-head"),
        (DetectorSpec("boxes", "rcnn", 2, (64,), 100, "2fc", "sync"), "needs convolutions in the box head"),
        (DetectorSpec("boxes", "rcnn", 2, (64,), 100, head_width=0.01), "head_width expects .*got 0.01"),
        (DetectorSpec("boxes", "rcnn", 2, (64,), 100, proposals=0), "proposals expects .*got 0"),
    ],
)
def test_heads_that_do_not_go_together(spec: DetectorSpec, sentence: str) -> None:
    with pytest.raises(DovetailError, match=sentence):
        build_detector(source_of(None, "timm/test_resnet+fpn(channels=16)"), spec)
