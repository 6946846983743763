"""SlotCon: heads, group and slot losses, centre, gradients, the teacher's movement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dovetail.heads.slots import SlotHead, SlotHeadSpec, SlotOutput
from dovetail.objectives.objective import Loss
from dovetail.objectives.slots import SlotObjective, SlotSpec, active
from dovetail.schedules import Cosine, Moment
from dovetail.train.teacher import average_into
from dovetail.views.view import align, overlaps
from tests.golden.vectors import Comparison, Golden, gradients, load, use_eps


def head_and_teacher(golden: Golden, prefix: str, channels: int, prototypes: int) -> tuple[SlotHead, SlotHead]:
    """Return the student's and the teacher's head with the weights under `prefix`student and `prefix`teacher."""
    config = golden.config
    spec = SlotHeadSpec(hidden=config["hid"], dim=config["out"], prototypes=prototypes)
    heads = []
    for branch in ("student", "teacher"):
        head = spec.build(channels)
        load(head, head_weights(golden.under(f"{prefix}{branch}")))
        use_eps(head, batch_norm=config["bn_eps"])
        heads.append(head)
    return heads[0], heads[1]


def head_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename stored weights to ours and leave the predictor out."""
    mine = {name: tensor for name, tensor in tensors.items() if name.startswith("projector.")}
    return mine | {"prototypes.weight": tensors["prototypes"]}


def objective_for(golden: Golden, prefix: str, group_weight: float, prototypes: int) -> SlotObjective:
    """Return the objective with the stored predictor; disjoint crops as the official code treats them."""
    config = golden.config
    spec = SlotSpec(
        student_temperature=config["student_temp"],
        teacher_temperature=config["teacher_temp"],
        grouping_temperature=config["grouping_temp"],
        grouping_eps=config["grouping_eps"],
        contrast_temperature=config["contrast_temp"],
        group_weight=group_weight,
        centre_momentum=config["center_momentum"],
        predictor_hidden=config["hid"],
        reference_disjoint_crops=True,
    )
    objective = spec.build(SlotHeadSpec(hidden=config["hid"], dim=config["out"], prototypes=prototypes)).double()
    load(objective.predictor, golden.under(f"{prefix}student.predictor"))
    use_eps(objective, batch_norm=config["bn_eps"])
    return objective


def check(golden: Golden) -> Iterator[Comparison]:
    config = golden.config
    yield from check_momentum(golden)
    for case in config["cases"]:
        student, teacher = head_and_teacher(golden, "", config["C"], config["K"])
        objective = objective_for(golden, "", config["group_loss_weight"], config["K"])
        objective.centre.copy_(golden[f"{case}.center"])
        yield from check_case(golden.under(case), student, teacher, objective, case)


def check_momentum(golden: Golden) -> Iterator[Comparison]:
    """The teacher used is the one before, moved by the stored momentum schedule towards the student."""
    config = golden.config
    momentum = Cosine(config["teacher_momentum_base"], 1.0)(Moment(config["ema_k"], config["ema_K"], 1))
    yield Comparison("momentum", torch.tensor(momentum, dtype=torch.float64), golden["ema.momentum_used"])
    expected = head_weights(golden.under("teacher"))
    before = head_weights(golden.under("teacher_before_ema"))
    student = head_weights(golden.under("student"))
    average_into(list(before.values()), [student[name] for name in before], momentum)
    for name, moved in before.items():
        yield Comparison(f"ema {name}", moved, expected[name])


def check_case(
    case: dict[str, Tensor], student: SlotHead, teacher: SlotHead, objective: SlotObjective, name: str
) -> Iterator[Comparison]:
    features = [case[f"student.view{view}.features"].requires_grad_() for view in (1, 2)]
    seen = [student(value) for value in features]
    with torch.no_grad():
        targets = [teacher(case[f"teacher.view{view}.features"]) for view in (1, 2)]
    boxes, flips = view_geometry(case)
    loss = objective.compare(seen, targets, boxes, flips)
    yield from (
        Comparison(f"{name}.{one.what}", one.ours, one.expected)
        for one in compare_case(case, seen, targets, boxes, flips, objective, loss)
    )
    loss.total.backward()
    for view, value in enumerate(features, 1):
        yield Comparison(f"{name}.grad view{view}", value.grad, case[f"expected.grad.student.view{view}.features"])
    expected = {key.removeprefix("expected.grad.student."): value for key, value in case.items()}
    expected["prototypes.weight"] = case["expected.grad.student.prototypes"]
    yield from gradients(student, name, expected)
    predictor = {key.removeprefix("predictor."): value for key, value in expected.items() if "predictor." in key}
    yield from gradients(objective.predictor, name + ".predictor", predictor)
    objective.update(seen, targets)
    yield Comparison(f"{name}.centre", objective.centre, case["expected.new_center"])


def view_geometry(case: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return both views' overlap boxes and flips."""
    return [case["view1.coords"], case["view2.coords"]], [case["view1.flipped"], case["view2.flipped"]]


def compare_case(
    case: dict[str, Tensor],
    seen: Sequence[SlotOutput],
    targets: Sequence[SlotOutput],
    boxes: list[Tensor],
    flips: list[Tensor],
    objective: SlotObjective,
    loss: Loss,
) -> Iterator[Comparison]:
    for branch, outputs in (("student", seen), ("teacher", targets)):
        for index, output in enumerate(outputs):
            stem = f"expected.{branch}.view{index + 1}"
            aligned = align(output.scores, boxes[index], flips[index])
            ours = {
                "scores": output.scores,
                "aligned_scores": aligned,
                "active_slots": active(output.scores),
                "slots": objective.slots(output),
            }
            for key, value in ours.items():
                if f"{stem}.{key}" in case:
                    yield Comparison(f"{stem}.{key}", value, case[f"{stem}.{key}"])
    for a, b in ((0, 1), (1, 0)):
        direction = f"student{a + 1}_teacher{b + 1}"
        scores = [align(one.scores, boxes[v], flips[v]) for one, v in ((seen[a], a), (targets[b], b))]
        group = objective.group(*scores, overlaps(boxes[a]))
        yield Comparison(f"group {direction}", group, case[f"expected.group_loss.{direction}"])
        slot = objective.slot(seen[a], targets[b])
        yield Comparison(f"slot {direction}", slot, case[f"expected.slot_loss.{direction}"])
    yield Comparison("group", loss.parts["group"], case["expected.group_loss"])
    yield Comparison("slot", loss.parts["slot"], case["expected.slot_loss"])
    yield Comparison("loss", loss.total, case["expected.loss"])
