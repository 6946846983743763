"""Layer decay, mixup and smoothing are as their formulas say; fine-tuning learns and repeats itself."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from dovetail.downstream.classify.job import build_classifier
from dovetail.downstream.classify.loop import (
    Classifier,
    ClassifyOptions,
    build_optimiser,
    finetune_classification,
    training_batch,
)
from dovetail.downstream.labels.images import open_splits
from dovetail.downstream.machine import Machine
from dovetail.downstream.start import source_of
from tests.downstream.pictures import class_folder

HERE = Machine("cpu", "float32", 0)
OPTIONS = ClassifyOptions(
    classes=3, steps=12, size=32, mean=(0.5,) * 3, std=(0.25,) * 3, batch_size=6, lr=0.01, layer_decay=0.5
)


def classifier(model: str = "timm/test_resnet") -> Classifier:
    torch.manual_seed(0)
    return build_classifier(source_of(None, model, image_size=32), 3)


@pytest.mark.parametrize("model", ["timm/test_resnet", "timm/test_vit", "timm/test_vit+fpn(channels=16)"])
def test_rates_fall_by_the_layer_decay_towards_the_stem(model: str) -> None:
    made = classifier(model)
    optimiser = build_optimiser(made, OPTIONS)
    rates = sorted({group["lr"] for group in optimiser.param_groups})
    assert rates[-1] == OPTIONS.lr
    assert all(below == pytest.approx(0.5 * above) for below, above in itertools.pairwise(rates))
    held = {id(value) for group in optimiser.param_groups for value in group["params"]}
    assert held == {id(value) for value in made.parameters() if value.requires_grad}
    assert not any(
        name.startswith("features.network.model.decoder")
        for name, value in made.named_parameters()
        if value.requires_grad
    )
    by_id = {id(value): group for group in optimiser.param_groups for value in group["params"]}
    assert by_id[id(made.head.weight)]["weight_decay"] > 0
    assert by_id[id(made.head.bias)]["weight_decay"] == 0


def test_learns_repeats_and_does_not_depend_on_threads(tmp_path: Path) -> None:
    train, _, _ = open_splits(class_folder(tmp_path))
    options = dataclasses.replace(OPTIONS, randaugment=9, random_erasing=0.25, cutmix=1.0, mixup=0.8, batch_size=4)
    few = dataclasses.replace(options, steps=2)
    odd = [finetune_classification(classifier(), train, few, machine=Machine("cpu", "float32", n)) for n in (0, 3)]
    assert odd[0] == odd[1]
    first, second = classifier(), classifier()
    losses = finetune_classification(first, train, OPTIONS, machine=HERE)
    assert losses[-1] < 0.8 * losses[0]
    assert finetune_classification(second, train, OPTIONS, machine=Machine("cpu", "float32", 2)) == losses
    one, two = training_batch(train, OPTIONS, 3), training_batch(train, OPTIONS, 3)
    assert torch.equal(one[0], two[0])
