"""SelfPatch: neighbour choice with the official wrap-around, aggregation, both losses, centres, gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dovetail.heads.aggregate import SelfPatchHead, SelfPatchHeadSpec, neighbourhood
from dovetail.objectives.patches import SelfPatchSpec
from tests.golden.check_dino import at_epoch, head_spec, temperature, views_of
from tests.golden.vectors import Comparison, Golden, gradients, load, use_eps

ROLES = ("global", "local")


def spec_of(golden: Golden) -> SelfPatchHeadSpec:
    """Return the head's spec; neighbours wrap around as in the official code."""
    config = golden.config
    weights = golden.under("student")
    return SelfPatchHeadSpec(
        cls=head_spec(golden, config["K_cls"], golden.under("student.cls_head")),
        patch=head_spec(golden, config["K_patch"], golden.under("student.patch_head")),
        neighbours=config["k_num"],
        blocks=sum(name.startswith("aggregation.") and name.endswith("norm1.weight") for name in weights),
        head_channels=config["D"] // config["heads"],
        reference_wraparound=True,
        mlp_ratio=config["mlp_ratio"],
    )


def loaded(golden: Golden, branch: str) -> SelfPatchHead:
    """Return the head of a branch with the stored weights."""
    head = spec_of(golden).build(golden.config["D"])
    parts = ("aggregation.", "cls_head.", "patch_head.")
    load(head, {name: tensor for name, tensor in golden.under(branch).items() if name.startswith(parts)})
    return head


def check(golden: Golden) -> Iterator[Comparison]:
    config = golden.config
    student, teacher = loaded(golden, "student"), loaded(golden, "teacher")
    teacher.become_teacher()
    for head in (student, teacher):
        use_eps(head, layer_norm=config["layer_norm_eps"])
    objective = SelfPatchSpec(
        config["student_temp"], temperature(golden), config["center_momentum"], config["patch_loss_weight"]
    ).build(spec_of(golden))
    objective.double()
    objective.cls.centre.copy_(golden["center_cls"].flatten())
    objective.patches.centre.copy_(golden["center_patch"].flatten())
    roles = [role for role in ROLES if len(golden.tensors.get(f"student.{role}_tokens", ()))]  # perhaps no local crop
    tokens = {role: golden[f"student.{role}_tokens"].requires_grad_() for role in roles}
    outputs = [student(view) for role in roles for view in tokens[role]]
    with torch.no_grad():
        seen = [teacher(view) for role in roles for view in golden[f"teacher.{role}_tokens"]]
    views = views_of(config["B"], len(outputs) - 2)
    loss = objective(outputs, seen, views, at_epoch(config["epoch"]))
    loss.total.backward()
    objective.update(outputs, seen)
    for role in roles:
        yield from check_targets(golden, teacher, role)
    first_local = len(golden["student.global_tokens"])
    slices = {"global": slice(0, first_local), "local": slice(first_local, None)}
    for role, chosen in ((role, slices[role]) for role in roles):
        for branch, made in (("student", outputs), ("teacher", seen)):
            for part, logits in (("cls", [one.cls for one in made]), ("patch", [one.patches for one in made])):
                yield from check_logits(golden, f"{branch}.{role}.{part}_logits", logits[chosen])
        grad = tokens[role].grad
        assert grad is not None
        yield Comparison(f"grad.{role}_tokens", grad, golden[f"expected.grad.student.{role}_tokens"])
    yield Comparison("cls_loss", loss.parts["cls"], golden["expected.cls_loss"])
    yield Comparison("patch_loss", loss.parts["patches"], golden["expected.patch_loss"])
    yield Comparison("loss", loss.total, golden["expected.loss"])
    yield Comparison("new_center_cls", objective.cls.centre, golden["expected.new_center_cls"].flatten())
    yield Comparison("new_center_patch", objective.patches.centre, golden["expected.new_center_patch"].flatten())
    yield from gradients(student, "head", golden.under("expected.grad.student"))


def check_targets(golden: Golden, teacher: SelfPatchHead, role: str) -> Iterator[Comparison]:
    """Compare candidates, the chosen neighbours as sets, and the aggregated tokens."""
    side = golden.config[f"grid_{role}"]
    around = neighbourhood(side, side, wraparound=True).patch
    stored = golden[f"neighbourhood.{role}"]
    yield Comparison(f"neighbourhood.{role}", around.sort(1).values, stored.sort(1).values, covers=stored)
    with torch.no_grad():
        views = golden[f"teacher.{role}_tokens"]
        chosen = torch.stack([teacher.choose(view).patch for view in views])
        pairs = [teacher.aggregate(view) for view in views]
    made = torch.stack([torch.cat([cls[:, None], patches], dim=1) for cls, patches in pairs])
    expected = golden[f"expected.teacher.{role}.selected_neighbours"]
    yield Comparison(f"neighbours.{role}", chosen.sort(-1).values, expected.sort(-1).values, covers=expected)
    yield Comparison(f"aggregated.{role}", made, golden[f"expected.teacher.{role}.aggregated_tokens"])


def check_logits(golden: Golden, name: str, logits: list[Tensor]) -> Iterator[Comparison]:
    """Compare the logits of views where they are stored."""
    if f"expected.{name}" in golden.tensors:
        expected = golden[f"expected.{name}"]
        yield Comparison(name, torch.stack(logits).reshape(expected.shape), expected)
