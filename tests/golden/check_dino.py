"""DINO: head with frozen and learned magnitudes, loss over crossed views, centre, gradients, temperatures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from dovetail.heads.prototypes import PrototypeHead, PrototypeHeadSpec
from dovetail.objectives.distill import DistillObjective, DistillSpec
from dovetail.objectives.objective import Loss
from dovetail.schedules import LinearByEpoch, Moment, value_at
from dovetail.views.view import Role, View
from tests.golden.vectors import Comparison, Golden, gradients, load, use_eps


def empty_view(batch: int, role: Role, mask: Tensor | None = None) -> View:
    """Return a view without pixels, for objectives that read only its role and mask."""
    nothing = torch.zeros(batch, 0)
    return View(nothing, torch.zeros(batch, 4), torch.zeros(batch, dtype=torch.bool), nothing, role, mask)


def views_of(batch: int, local_crops: int) -> list[View]:
    """Return two global views and the local ones."""
    return [empty_view(batch, "global")] * 2 + [empty_view(batch, "local")] * local_crops


def at_epoch(epoch: int) -> Moment:
    """Return the first moment of an epoch; only the epoch counts for temperatures."""
    return Moment(step=epoch, total_steps=1000, steps_per_epoch=1)


def temperature(golden: Golden, *, warmup: str = "warmup_teacher_temp", end: str = "teacher_temp") -> LinearByEpoch:
    """Return the teacher's temperature schedule."""
    config = golden.config
    return LinearByEpoch(config[warmup], config[end], config["warmup_teacher_temp_epochs"])


def schedule_values(schedule: LinearByEpoch, epochs: int) -> Tensor:
    """Return a schedule's value in every epoch."""
    return torch.tensor([value_at(schedule, at_epoch(epoch)) for epoch in range(epochs)], dtype=torch.float64)


def cases_with_heads(golden: Golden) -> list[str]:
    """Return the names of the cases that have a student's head of their own."""
    return sorted({name.split(".")[0] for name in golden.tensors if ".student.head." in name})


def head_spec(
    golden: Golden, prototypes: int, weights: dict[str, Tensor], patch_prototypes: int = 0
) -> PrototypeHeadSpec:
    """Return the spec of the head that has the stored `weights`."""
    config = golden.config
    return PrototypeHeadSpec(
        hidden=config["hid"],
        bottleneck=config["bottleneck"],
        prototypes=prototypes,
        layers=sum(name.startswith("mlp.") and name.endswith("linear.weight") for name in weights),
        norm=any(".bn." in name for name in weights),
        learned_magnitude=bool(weights.get("last_layer.magnitude_trainable", False)),
        patch_prototypes=patch_prototypes,
    )


def loaded_head(spec: PrototypeHeadSpec, channels: int, weights: dict[str, Tensor]) -> PrototypeHead:
    """Return the head with the stored weights; a frozen magnitude is 1 and no parameter of ours."""
    head = spec.build(channels)
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith("magnitude_trainable")}
    if not spec.learned_magnitude:
        magnitude = kept.pop("last_layer.magnitude", None)
        assert magnitude is None or bool((magnitude == 1).all())
    load(head, kept)
    return head


def check(golden: Golden) -> Iterator[Comparison]:
    config = golden.config
    ours = schedule_values(temperature(golden), config["nepochs"])
    yield Comparison("teacher_temp_schedule", ours, golden["teacher_temp_schedule"])
    for case in cases_with_heads(golden):
        for comparison in check_case(golden, golden.under(case)):
            yield replace(comparison, what=f"{case}.{comparison.what}")


def check_case(golden: Golden, tensors: dict[str, Tensor]) -> Iterator[Comparison]:
    config = golden.config
    case = Golden("case", {}, tensors)
    weights = case.under("student.head")
    spec = head_spec(golden, config["K"], weights)
    student, teacher = (
        loaded_head(spec, config["D"], case.under(f"{branch}.head")) for branch in ("student", "teacher")
    )
    for head in (student, teacher):
        use_eps(head, batch_norm=config["bn_eps"])
    objective = DistillSpec(config["student_temp"], temperature(golden), config["center_momentum"]).build(spec).double()
    assert isinstance(objective, DistillObjective)
    objective.centre.copy_(case["center"].flatten())
    features = case["student.features"].requires_grad_()
    with torch.no_grad():
        seen = teacher(case["teacher.features"].flatten(0, 1)).reshape(*case["teacher.features"].shape[:2], -1)
    logits = student(features.flatten(0, 1)).reshape(*features.shape[:2], -1)
    logits.retain_grad()
    loss = run(objective, list(logits), list(seen), golden)
    loss.total.backward()
    objective.update(list(logits.detach()), list(seen))
    expected = case.under("expected")
    yield Comparison("student.logits", logits, expected["student.logits"])
    yield Comparison("teacher.logits", seen, expected["teacher.logits"])
    yield Comparison("loss", loss.total, expected["loss"])
    yield Comparison("new_center", objective.centre, expected["new_center"].flatten())
    assert features.grad is not None
    assert logits.grad is not None
    yield Comparison("grad.features", features.grad, expected["grad.student.features"])
    yield Comparison("grad.logits", logits.grad, expected["grad.student.logits"])
    # The bias of a layer before BatchNorm has no gradient but rounding, so its error is relative to all gradients.
    yield from against_largest(gradients(student, "head", case.under("expected.grad.student.head")))


def against_largest(comparisons: Iterator[Comparison]) -> Iterator[Comparison]:
    """Yield comparisons relative to the largest expected value of all of them."""
    listed = list(comparisons)
    scale = max(float(one.expected.abs().max()) for one in listed)
    for one in listed:
        yield replace(one, scale=scale) if one.expected.abs().max() < 1e-9 * scale else one


def run(objective: DistillObjective, student: list[Tensor], teacher: list[Tensor], golden: Golden) -> Loss:
    """Return the loss at the stored epoch."""
    config = golden.config
    views = views_of(config["B"], len(student) - 2)
    return objective(student, teacher, views, at_epoch(config["epoch"]))  # type: ignore[no-any-return]
