"""DenseCL: heads, matches, both losses, gradients, both queues, the teacher's movement."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dovetail.heads.dense import DenseHead, DenseHeadSpec, DenseOutput
from dovetail.objectives.dense import DenseContrast, DenseContrastSpec, correspondences, take_cells
from dovetail.schedules import Moment
from dovetail.train.teacher import average_into
from tests.golden.vectors import Comparison, Golden, gradients, load


def head_of(golden: Golden, branch: str) -> DenseHead:
    """Return a branch's head with the stored weights."""
    weights = {name: value for name, value in golden.under(branch).items() if name.partition(".")[0].endswith("_head")}
    head = DenseHeadSpec(hidden=golden.config["hid"], dim=golden.config["out"]).build(golden.config["C"])
    load(head, weights)
    return head


def objective_of(golden: Golden) -> DenseContrast:
    """Return the objective with the stored queues."""
    config = golden.config
    if config["num_grid"] not in (None, golden["student.features"].shape[-1]):
        raise ValueError("num_grid pools the map after matching, which is not offered; see dovetail.objectives.dense.")
    spec = DenseContrastSpec(config["temperature"], config["queue_len"], config["loss_lambda"])
    objective = spec.build(DenseHeadSpec(hidden=config["hid"], dim=config["out"]))
    queues = {}
    for name in ("queue_global", "queue_dense"):
        queues[f"{name}.vectors"], queues[f"{name}.pointer"] = golden[name], golden[f"{name}.pointer"]
    load(objective, queues)
    return objective


def check(golden: Golden) -> Iterator[Comparison]:
    yield from check_teacher(golden)
    student, teacher, objective = head_of(golden, "student"), head_of(golden, "teacher"), objective_of(golden)
    features = golden["student.features"].requires_grad_()
    query = student(features)
    with torch.no_grad():
        key = teacher(golden["teacher.features"])
    yield from check_matches(golden, query, key)
    # One way: what the student made of the second view and the teacher of the first must not matter.
    outputs = [query, student(golden["teacher.features"])], [teacher(golden["teacher.features"].flip(0)), key]
    loss = objective(*outputs, [], Moment(0, 1, 1))
    yield Comparison("global_loss", loss.parts["global"], golden["expected.global_loss"])
    yield Comparison("dense_loss", loss.parts["dense"], golden["expected.dense_loss"])
    yield Comparison("loss", loss.total, golden["expected.loss"])
    loss.total.backward()
    yield Comparison("grad features", features.grad, golden["expected.grad.student.features"])
    yield from gradients(student, "student", golden.under("expected.grad.student"))
    objective.update(*outputs)
    for name, queue in (("queue_global", objective.queue_global), ("queue_dense", objective.queue_dense)):
        yield Comparison(f"new {name}", queue.vectors, golden[f"expected.new_{name}"])
        yield Comparison(f"new {name}.pointer", queue.pointer, golden[f"expected.new_{name}.pointer"])


def check_teacher(golden: Golden) -> Iterator[Comparison]:
    """The teacher used is the one before, moved towards the student with constant momentum."""
    before, student = head_of(golden, "teacher_before_ema"), head_of(golden, "student")
    average_into([one.detach() for one in before.parameters()], list(student.parameters()), golden.config["momentum"])
    expected = golden.under("teacher")
    for name, moved in before.named_parameters():
        yield Comparison(f"ema {name}", moved, expected[name])


def check_matches(golden: Golden, query: DenseOutput, key: DenseOutput) -> Iterator[Comparison]:
    """Matches, the key's map and the cosines of positive pairs."""
    index = correspondences(query.features, key.features)
    positives = take_cells(key.cells, index)
    cosines = {
        "global_positive_cosine": (query.embedding * key.embedding).sum(dim=1, keepdim=True),
        "dense_positive_cosine": (query.cells.flatten(2).transpose(1, 2) * positives).sum(dim=2),
    }
    yield Comparison("correspondence", index, golden["expected.correspondence_index"])
    yield Comparison("key cells", key.cells.flatten(2), golden["expected.teacher.dense_grid_normalised"])
    for name, value in cosines.items():
        yield Comparison(name, value, golden[f"expected.{name}"])
