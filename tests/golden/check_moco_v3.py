"""MoCo v3: projector, predictor, the loss of both directions, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dovetail.heads.base import LastNorm
from dovetail.heads.vector import VectorHead, VectorHeadSpec
from dovetail.objectives.contrast import KeyContrastSpec
from dovetail.objectives.objective import Loss
from dovetail.objectives.vector import PredictorSpec
from dovetail.schedules import Moment
from tests.golden.vectors import Comparison, Golden, gradients, load, use_eps


def check(golden: Golden) -> Iterator[Comparison]:
    for case, constants in golden.config["cases"].items():
        with_heads = bool(golden.under(f"{case}.student"))
        yield from (check_heads if with_heads else check_loss)(golden, case, constants["temperature"])


def check_loss(golden: Golden, case: str, temperature: float) -> Iterator[Comparison]:
    """Queries and keys are given."""
    tensors = golden.under(case)
    queries = [tensors[f"query{view}"].requires_grad_() for view in (1, 2)]
    keys = [tensors[f"key{view}"] for view in (1, 2)]
    spec = KeyContrastSpec(temperature=temperature, predictor=None, rows_per_block=2)
    loss = spec.build(VectorHeadSpec(dim=keys[0].shape[1]))(queries, keys, [], Moment(0, 1, 1))
    loss.total.backward()
    yield from compare_losses(case, tensors, loss)
    for view, query in enumerate(queries, start=1):
        assert query.grad is not None
        yield Comparison(f"{case} grad query{view}", query.grad, tensors[f"expected.grad.query{view}"])


def compare_losses(case: str, tensors: dict[str, Tensor], loss: Loss) -> Iterator[Comparison]:
    """The sum, and each direction where it is stored."""
    yield Comparison(f"{case} loss", loss.total, tensors["expected.loss"])
    for query, key in ((1, 2), (2, 1)):
        stored = f"expected.loss_query{query}_key{key}"
        if stored in tensors:
            yield Comparison(f"{case} {stored}", loss.parts[f"query{query - 1}_key{key - 1}"], tensors[stored])


def projector_of(golden: Golden, case: str, branch: str) -> VectorHead:
    """Return a branch's head with the stored weights."""
    config: dict[str, Any] = golden.config
    last_norm: LastNorm = "plain" if config["projector_last_bn_without_affine"] else "none"
    spec = VectorHeadSpec(
        config["hidden"], config["out"], layers=config["projector_layers"][case], bias=False, last_norm=last_norm
    )
    head = spec.build(config["D"])
    load(head.projector, golden.under(f"{case}.{branch}.projector"))
    use_eps(head, batch_norm=config["bn_eps"])
    return head


def check_heads(golden: Golden, case: str, temperature: float) -> Iterator[Comparison]:
    """Features of both branches are given."""
    config, tensors = golden.config, golden.under(case)
    last_norm: LastNorm = "plain" if config["predictor_last_bn_without_affine"][case] else "none"
    predictor = PredictorSpec(config["hidden"], config["predictor_layers"], bias=False, last_norm=last_norm)
    objective = KeyContrastSpec(temperature, predictor).build(VectorHeadSpec(dim=config["out"]))
    load(objective.predictor, golden.under(f"{case}.student.predictor"))
    use_eps(objective, batch_norm=config["bn_eps"])
    student, teacher = (projector_of(golden, case, branch) for branch in ("student", "teacher"))
    features = [tensors[f"student.features{view}"].requires_grad_() for view in (1, 2)]
    projections = [student(value) for value in features]
    with torch.no_grad():
        keys = [teacher(tensors[f"teacher.features{view}"]) for view in (1, 2)]
    loss = objective(projections, keys, [], Moment(0, 1, 1))
    loss.total.backward()
    yield from compare_losses(case, tensors, loss)
    for view in (1, 2):
        query = objective.predictor(projections[view - 1])
        yield Comparison(f"{case} query{view}", query, tensors[f"expected.query{view}"])
        yield Comparison(f"{case} key{view}", keys[view - 1], tensors[f"expected.key{view}"])
        gradient = features[view - 1].grad
        assert gradient is not None
        yield Comparison(f"{case} grad features{view}", gradient, tensors[f"expected.grad.student.features{view}"])
    expected = golden.under(f"{case}.expected.grad.student")
    yield from gradients(student, f"{case} student", expected)
    predicted = {name.removeprefix("predictor."): g for name, g in expected.items() if name.startswith("predictor.")}
    yield from gradients(objective.predictor, f"{case} predictor", predicted)
