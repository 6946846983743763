"""DetCon's loss: a hand-computed case, a plain reference in NumPy, and who gets a gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dovetail.errors import DovetailError
from dovetail.heads.segments import SegmentHeadSpec
from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.objective import Objective
from dovetail.objectives.segments import SegmentContrastSpec
from dovetail.objectives.vector import PredictorSpec
from dovetail.views.view import View

HEAD = SegmentHeadSpec(hidden=16, dim=8)


def objective(temperature: float = 0.1, rows_per_block: int | None = None) -> Objective:
    """Return the loss without a predictor."""
    return SegmentContrastSpec(temperature, None, rows_per_block).build(HEAD).double()


def with_ids(ids: Tensor) -> View:
    """Return a view whose sampled segments are `ids` [B, S]."""
    return replace(View.of(torch.zeros(len(ids), 3, 4, 4)), ids=ids)


def random_case(seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[View]]:
    """Return embeddings of 3 images with 4 samples out of 5 segments, some of which only one view shows."""
    generator = torch.Generator().manual_seed(seed)
    outputs = [torch.randn(3, 4, 8, generator=generator, dtype=torch.float64) for _ in range(4)]
    ids = [torch.randint(5, (3, 4), generator=generator) for _ in range(2)]
    return [one.requires_grad_() for one in outputs[:2]], outputs[2:], [with_ids(one) for one in ids]


def reference(student: list[Tensor], teacher: list[Tensor], views: list[View], temperature: float) -> float:
    """Return the loss, one sample and one candidate at a time."""
    predicted, keys = ([one.detach().numpy() for one in branch] for branch in (student, teacher))
    ids = [view.ids.numpy() for view in views]  # type: ignore[union-attr]
    images, samples = ids[0].shape
    total = 0.0
    for here, there in ((0, 1), (1, 0)):
        for image, sample in np.ndindex(images, samples):
            query, segment = predicted[here][image, sample], ids[here][image, sample]
            candidates, positives = [], []
            for view in (here, there):
                for other, place in np.ndindex(images, samples):
                    same = other == image and ids[view][other, place] == segment
                    if same and view == here:
                        continue
                    key = keys[view][other, place]
                    cosine = query @ key / np.linalg.norm(query) / np.linalg.norm(key)
                    candidates.append(math.exp(cosine / temperature))
                    if same:
                        positives.append(math.exp(cosine / temperature))
            repeats = int((ids[here][image] == segment).sum())
            if positives:
                entropy = -float(np.mean([math.log(one / sum(candidates)) for one in positives]))
                total += entropy / repeats / (images * samples)
    return total


@pytest.mark.parametrize("rows_per_block", [None, 5])
def test_it_equals_a_plain_reference(rows_per_block: int | None) -> None:
    for seed in range(4):
        student, teacher, views = random_case(seed)
        shared = [bool((views[0].ids[:, :, None] == views[1].ids[:, None]).any(2).all())]  # type: ignore[index]
        assert not all(shared)  # some segments have no positive
        loss = objective(0.3, rows_per_block)(student, teacher, views)
        assert loss.total.item() == pytest.approx(reference(student, teacher, views, 0.3), rel=1e-9)


def test_a_case_by_hand() -> None:
    """One image, one sample in each view, orthogonal embeddings.

    If it is the same segment, the sample is its own only candidate and the loss is 0. With a second image, whose keys
    are orthogonal, there are three candidates: the positive with e^1 and two with e^0.
    """
    one, two = torch.eye(8, dtype=torch.float64)[0].view(1, 1, 8), torch.eye(8, dtype=torch.float64)[1].view(1, 1, 8)
    alone = with_ids(torch.tensor([[3]]))
    assert objective(1.0)([one, one], [one, one], [alone, alone]).total.item() == 0
    both = torch.cat([one, two])
    views = [with_ids(torch.tensor([[3], [3]]))] * 2
    found = objective(1.0)([both, both], [both, both], views)
    assert found.total.item() == pytest.approx(2 * math.log((math.e + 2) / math.e))
    assert float(found.parts["shared"]) == 1


def test_a_segment_that_only_one_view_shows_has_no_loss_but_is_a_negative() -> None:
    student, teacher, _ = random_case()
    views = [with_ids(torch.tensor([[0, 1, 2, 3]] * 3)), with_ids(torch.tensor([[0, 1, 7, 8]] * 3))]
    loss = objective()(student, teacher, views)
    assert float(loss.parts["shared"]) == 0.5
    loss.total.backward()
    for one in student:
        assert one.grad is not None
        assert bool((one.grad[:, 2:] == 0).all())
        assert bool((one.grad[:, :2] != 0).any())
    moved = [teacher[0], teacher[1].clone()]
    moved[1][0, 3] = -moved[1][0, 3]
    assert not objective()(student, moved, views).total.equal(loss.total)


def test_without_a_common_segment_the_loss_is_a_zero_with_a_graph() -> None:
    student, teacher, _ = random_case()
    loss = objective()(student, teacher, [with_ids(torch.zeros(3, 4)), with_ids(torch.ones(3, 4))])
    assert loss.total.item() == 0
    loss.total.backward()
    assert all(one.grad is not None and bool((one.grad == 0).all()) for one in student)


def test_the_order_of_samples_and_the_names_of_segments_change_nothing() -> None:
    student, teacher, views = random_case()
    expected = objective()(student, teacher, views).total
    order = torch.tensor([2, 0, 3, 1])
    renamed = [replace(view, ids=view.ids[:, order] * 10 + 3) for view in views]  # type: ignore[index]
    found = objective()([one[:, order] for one in student], [one[:, order] for one in teacher], renamed).total
    torch.testing.assert_close(found, expected)


def test_only_the_student_gets_a_gradient() -> None:
    student, teacher, views = random_case()
    loss = SegmentContrastSpec(predictor=PredictorSpec(16)).build(HEAD).double()
    targets = [one.requires_grad_() for one in teacher]
    loss(student, targets, views).total.backward()
    assert all(one.grad is not None for one in (*student, *loss.parameters()))
    assert all(one.grad is None for one in targets)


def test_it_refuses_other_heads_and_views_without_segments() -> None:
    with pytest.raises(DovetailError, match="SegmentHeadSpec"):
        SegmentContrastSpec().build(VectorHeadSpec())
    student, teacher, views = random_case()
    with pytest.raises(DovetailError, match=r"Cells\(segments=...\)"):
        objective()(student, teacher, [replace(view, ids=None) for view in views])


def test_it_equals_the_loss_of_lightly() -> None:
    lightly = pytest.importorskip("lightly.loss", reason="needs the extra `bench`")
    student, teacher, views = random_case()
    ids = [view.ids for view in views]
    theirs = lightly.DetConBLoss(temperature=0.1)(*student, *teacher, *ids)
    wanted = torch.autograd.grad(theirs, student)
    ours = objective()(student, teacher, views).total
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, student), wanted)
