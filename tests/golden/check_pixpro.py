"""PixPro: projectors, propagation, positive pairs, both losses, gradients, the teacher's movement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from dovetail.heads.dense import PixelHead, PixelHeadSpec, PixelOutput
from dovetail.objectives.pixels import PixelConsistency, PixelConsistencySpec, cell_centres, near
from dovetail.schedules import Cosine, Moment
from dovetail.train.teacher import average_into
from dovetail.views.view import View
from tests.golden.vectors import Comparison, Golden, gradients, load, use_eps

HEAD_PARTS = ("projector", "instance_projector")
OBJECTIVE_PARTS = ("value_transform", "instance_predictor")


def weights_of(tensors: Mapping[str, Tensor], parts: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the weights of some parts under our names; a transform of one layer is stored without its index."""
    mine = {name: value for name, value in tensors.items() if name.partition(".")[0] in parts}
    return {name.replace("value_transform.conv", "value_transform.0.conv"): value for name, value in mine.items()}


def in_training(module: nn.Module, golden: Golden) -> nn.Module:
    """Give BatchNorm the stored epsilon and mode."""
    use_eps(module, batch_norm=golden.config["bn_eps"])
    return module.train(golden.config["bn_mode"] == "train")


def view_of(golden: Golden, name: str) -> View:
    """Return a view whose corners are the stored coordinates."""
    coords, flipped = golden[f"{name}.coords"], golden[f"{name}.flipped"]
    source = coords.new_tensor(golden.config["image_size_wh"]).expand(len(coords), 2)
    left_first = torch.where(flipped[:, None], coords[:, [2, 1, 0, 3]], coords)
    box = torch.cat([left_first[:, :2] * (source - 1), left_first[:, 2:] * (source - 1) + 1], dim=1) / source.repeat(
        1, 2
    )
    return View(pixels=coords.new_zeros(len(coords), 3, 1, 1), box=box, flipped=flipped, source_px=source)


def head_spec(golden: Golden, case: str) -> PixelHeadSpec:
    instance = any(name.startswith(f"{case}.student.instance_projector.") for name in golden.tensors)
    return PixelHeadSpec(hidden=golden.config["hid"], dim=golden.config["out"], instance=instance)


def head_of(golden: Golden, case: str, branch: str) -> PixelHead:
    """Return a branch's head with the stored weights."""
    head = head_spec(golden, case).build(golden.config["C"])
    load(head, weights_of(golden.under(f"{case}.{branch}"), HEAD_PARTS))
    in_training(head, golden)
    return head


def objective_of(golden: Golden, case: str) -> PixelConsistency:
    """Return the objective with the stored propagation and predictor."""
    config, head = golden.config, head_spec(golden, case)
    spec = PixelConsistencySpec(
        distance=config["pos_ratio"],
        gamma=config["gamma"],
        clamp=config["clamp"],
        transform_layers=config["transform_layers"],
        instance_weight=config["ins"] if head.instance else 0.0,
    )
    objective = spec.build(head)
    load(objective, weights_of(golden.under(f"{case}.student"), OBJECTIVE_PARTS))
    in_training(objective, golden)
    return objective


def check(golden: Golden) -> Iterator[Comparison]:
    cases = [name.removesuffix(".expected.loss") for name in golden.tensors if name.endswith(".expected.loss")]
    for case in sorted(cases):
        yield from check_teacher(golden, case)
        yield from check_case(golden, case)


def check_teacher(golden: Golden, case: str) -> Iterator[Comparison]:
    """The momentum of the schedule, and the teacher moved with it towards the student."""
    config = golden.config
    momentum = Cosine(config["teacher_momentum_base"], 1.0)(Moment(config["ema_k"], config["ema_K"], 1))
    yield Comparison(
        f"{case}.momentum", torch.tensor(momentum, dtype=torch.float64), golden[f"{case}.ema.momentum_used"]
    )
    before, student = head_of(golden, case, "teacher_before_ema"), head_of(golden, case, "student")
    average_into([one.detach() for one in before.parameters()], list(student.parameters()), momentum)
    expected = golden.under(f"{case}.teacher")
    for name, moved in before.named_parameters():
        yield Comparison(f"{case}.ema {name}", moved, expected[name])


def check_case(golden: Golden, case: str) -> Iterator[Comparison]:
    head, teacher, objective = (
        head_of(golden, case, "student"),
        head_of(golden, case, "teacher"),
        objective_of(golden, case),
    )
    views = [view_of(golden, "view1"), view_of(golden, "view2")]
    features = [golden[f"{case}.student.view{index}.features"].requires_grad_() for index in (1, 2)]
    student = [head(value) for value in features]
    with torch.no_grad():
        targets = [teacher(golden[f"{case}.teacher.view{index}.features"]) for index in (1, 2)]
    expected = golden.under(f"{case}.expected")
    for one in compare_losses(objective, student, targets, views, expected):
        yield Comparison(f"{case}.{one.what}", one.ours, one.expected, one.tolerance, one.scale)
    loss = objective(student, targets, views, Moment(0, 1, 1))
    yield Comparison(f"{case}.loss", loss.total, expected["loss"], scale=scale_of_losses(expected))
    yield Comparison(f"{case}.pixel", loss.parts["pixel"], expected["pixel_loss"], scale=scale_of_losses(expected))
    if "instance_loss" in expected:
        yield Comparison(f"{case}.instance", loss.parts["instance"], expected["instance_loss"])
    loss.total.backward()
    for index, value in enumerate(features, 1):
        yield Comparison(f"{case}.grad view{index}", value.grad, expected[f"grad.student.view{index}.features"])
    yield from compare_gradients(golden, case, head, objective)


def compare_losses(
    objective: PixelConsistency,
    student: list[PixelOutput],
    targets: list[PixelOutput],
    views: list[View],
    expected: Mapping[str, Tensor],
) -> Iterator[Comparison]:
    """Everything stored up to the two directions of the pixel loss, some of it for some cases only."""
    for index, output in enumerate(student, 1):
        stem = f"student.view{index}"
        ours = {"projection": output.embedding, "propagated": objective.propagate(output.embedding)}
        for name, value in ours.items():
            if f"{stem}.{name}" in expected:
                yield Comparison(f"{stem}.{name}", value, expected[f"{stem}.{name}"])
    if "positive_mask.view1_view2" in expected:
        centres = [cell_centres(view, output.embedding) for view, output in zip(views, student, strict=True)]
        mask = near(*centres, distance=objective.spec.distance)
        yield Comparison("positive_mask", mask, expected["positive_mask.view1_view2"])
    for a, b in ((0, 1), (1, 0)):
        name = f"pixel_loss.student{a + 1}_teacher{b + 1}"
        yield Comparison(name, objective.pixel(student[a], targets[b], views[a], views[b]), expected[name])


def scale_of_losses(expected: Mapping[str, Tensor]) -> float:
    """The largest loss: their sums may cancel to nearly zero."""
    return max(float(value.abs()) for name, value in expected.items() if "_loss" in name or name == "loss")


def compare_gradients(golden: Golden, case: str, head: PixelHead, objective: PixelConsistency) -> Iterator[Comparison]:
    """Gradients of head and objective; those of biases before BatchNorm are zero but for rounding."""
    stored = golden.under(f"{case}.expected.grad.student")
    largest = max(float(value.abs().max()) for value in stored.values())
    for module, parts in ((head, HEAD_PARTS), (objective, OBJECTIVE_PARTS)):
        for one in gradients(module, case, weights_of(stored, parts)):
            own = float(one.expected.abs().max())
            yield Comparison(one.what, one.ours, one.expected, scale=largest if own < 1e-9 * largest else own)
