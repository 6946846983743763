"""iBOT's masked patches and SelfPatch's two losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dovetail.errors import DovetailError
from dovetail.heads.aggregate import SelfPatchHeadSpec, SelfPatchOutput
from dovetail.heads.prototypes import PrototypeHeadSpec
from dovetail.objectives.distill import DistillSpec
from dovetail.objectives.patches import MaskedPatchObjective, MaskedPatchSpec, SelfPatchObjective, SelfPatchSpec
from dovetail.schedules import Moment
from tests.golden.check_dino import empty_view, views_of

HEAD = PrototypeHeadSpec(prototypes=6)
START = Moment(0, 100, 10)
BATCH, SIDE = 3, 4


def objective() -> MaskedPatchObjective:
    """Return the objective in float64 with a centre away from zero."""
    made = MaskedPatchSpec(teacher_temperature=0.05, centre_momentum=0.8).build(HEAD).double()
    made.centre.copy_(torch.linspace(-0.1, 0.2, 6))
    return made


def logits(seed: int, count: int = 2, width: int = 6) -> list[Tensor]:
    """Return logits [B, N, width] of views."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, BATCH, SIDE * SIDE, width, generator=generator, dtype=torch.float64))


def masks() -> Tensor:
    """Return [2, B, h, w]; the second image of the first view has no mask, the first of the second is all masked."""
    mask = torch.rand(2, BATCH, SIDE, SIDE, generator=torch.Generator().manual_seed(3)) < 0.4
    mask[0, 1], mask[1, 0] = False, True
    return mask


def test_every_image_counts_alike_however_much_is_masked() -> None:
    student, teacher, made = logits(0), logits(1), objective()
    images = []
    for view in range(2):
        for image in range(BATCH):
            chosen = masks()[view, image].flatten()
            target = torch.softmax((teacher[view][image] - made.centre) / 0.05, dim=1)
            each = -(target * torch.log_softmax(student[view][image] / 0.1, dim=1)).sum(1)[chosen]
            images.append(each.mean() if chosen.any() else each.new_zeros(()))
    seen = [empty_view(BATCH, "global", mask) for mask in masks()]
    torch.testing.assert_close(made(student, teacher, seen, START).total, torch.stack(images).mean())


def test_only_masked_patches_get_a_gradient() -> None:
    student = [one.requires_grad_() for one in logits(0)]
    seen = [empty_view(BATCH, "global", mask) for mask in masks()]
    objective()(student, logits(1), seen, START).total.backward()
    for one, mask in zip(student, masks(), strict=True):
        assert one.grad is not None
        assert torch.equal(one.grad.abs().sum(2) > 0, mask.flatten(1))


@pytest.mark.parametrize("mask", [None, torch.zeros(BATCH, SIDE, SIDE, dtype=torch.bool)])
def test_nothing_masked_is_a_zero_that_keeps_the_graph(mask: Tensor | None) -> None:
    student = [one.requires_grad_() for one in logits(0)]
    total = objective()(student, logits(1), [empty_view(BATCH, "global", mask)] * 2, START).total
    total.backward()
    assert total.item() == 0
    assert all(one.grad is not None and not one.grad.any() for one in student)


def test_the_centre_moves_by_all_patches() -> None:
    made, teacher = objective(), logits(1)
    before = made.centre.clone()
    made.update(logits(0), teacher)
    torch.testing.assert_close(made.centre, 0.8 * before + 0.2 * torch.cat(teacher).mean((0, 1)))


def test_patches_with_prototypes_of_their_own() -> None:
    made = MaskedPatchSpec().build(PrototypeHeadSpec(prototypes=6, patch_prototypes=9))
    assert made.centre.shape == (9,)


def selfpatch(weight: float = 0.1) -> SelfPatchObjective:
    """Return SelfPatch's objective in float64."""
    head = SelfPatchHeadSpec(cls=HEAD, patch=PrototypeHeadSpec(prototypes=5))
    return SelfPatchSpec(patch_weight=weight).build(head).double()


def outputs(seed: int, views: int) -> list[SelfPatchOutput]:
    """Return a head's outputs for views."""
    return [
        SelfPatchOutput(cls.mean(1), patches)
        for cls, patches in zip(logits(seed, views), logits(seed + 9, views, width=5), strict=True)
    ]


def test_selfpatch_is_dino_and_every_patch_of_every_view() -> None:
    student, teacher, seen = outputs(0, 4), outputs(1, 4), views_of(BATCH, 2)
    loss = selfpatch()(student, teacher, seen, START)
    cls = DistillSpec().build(HEAD).double()([one.cls for one in student], [one.cls for one in teacher], seen, START)
    torch.testing.assert_close(loss.parts["cls"], cls.total)
    target = torch.softmax(torch.stack([one.patches for one in teacher]) / 0.04, dim=-1)
    guess = torch.log_softmax(torch.stack([one.patches for one in student]) / 0.1, dim=-1)
    torch.testing.assert_close(loss.parts["patches"], -(target * guess).sum(-1).mean())
    torch.testing.assert_close(loss.total, loss.parts["cls"] + 0.1 * loss.parts["patches"])


def test_both_centres_move_by_local_views_too() -> None:
    made, teacher = selfpatch(), outputs(1, 4)
    made.update(outputs(0, 4), teacher)
    torch.testing.assert_close(made.cls.centre, 0.1 * torch.cat([one.cls for one in teacher]).mean(0))
    torch.testing.assert_close(made.patches.centre, 0.1 * torch.cat([one.patches for one in teacher]).mean((0, 1)))


def test_mistakes_are_told() -> None:
    with pytest.raises(DovetailError, match="its teacher saw 2"):
        selfpatch()(outputs(0, 4), outputs(1, 2), views_of(BATCH, 2), START)
    with pytest.raises(DovetailError, match="needs SelfPatch's head"):
        SelfPatchSpec().build(HEAD)
    with pytest.raises(DovetailError, match="add the global views to teacher_views"):
        objective()([], [], [], START)
