"""SlotCon's objective where the golden vectors do not look: disjoint crops, missing slots, flips, half precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from dovetail.errors import DovetailError
from dovetail.heads.slots import SlotHeadSpec, SlotOutput
from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives import slots
from dovetail.objectives.slots import SlotObjective, SlotSpec, active
from dovetail.schedules import Moment
from dovetail.views.view import View

HEAD = SlotHeadSpec(hidden=12, dim=6, prototypes=5)
START = Moment(0, 10, 5)


@pytest.fixture
def objective() -> SlotObjective:
    torch.manual_seed(0)
    return SlotSpec(predictor_hidden=12).build(HEAD).double()


def make_output(seed: int, *, batch: int = 3, side: int = 6, grad: bool = False) -> SlotOutput:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(batch, 6, side, side, generator=generator, dtype=torch.float64)
    scores = torch.rand(batch, 5, side, side, generator=generator, dtype=torch.float64) * 2 - 1
    return SlotOutput(embedding.requires_grad_(grad), scores.requires_grad_(grad))


def make_view(box: list[list[float]], flipped: list[bool]) -> View:
    count = len(box)
    return View(torch.zeros(count, 3, 8, 8), torch.tensor(box), torch.tensor(flipped), torch.full((count, 2), 100.0))


def whole(count: int = 3) -> View:
    return make_view([[0.0, 0.0, 1.0, 1.0]] * count, [False] * count)


def loss_of(
    objective: SlotObjective, student: list[SlotOutput], teacher: list[SlotOutput], views: list[View]
) -> Tensor:
    return objective(student, teacher, views, START).total


def test_images_without_overlap_are_left_out_of_the_group_loss(objective: SlotObjective) -> None:
    student, teacher = [make_output(1), make_output(2)], [make_output(3), make_output(4)]
    boxes = [[0.0, 0.0, 0.6, 0.6]] * 2 + [[0.0, 0.0, 0.3, 0.3]]
    others = [[0.2, 0.2, 0.8, 0.9]] * 2 + [[0.5, 0.5, 0.9, 0.9]]
    views = [make_view(boxes, [False] * 3), make_view(others, [False] * 3)]
    with_all = objective(student, teacher, views, START).parts["group"]

    def first_two(outputs: list[SlotOutput]) -> list[SlotOutput]:
        return [SlotOutput(one.embedding[:2], one.scores[:2]) for one in outputs]

    without = [make_view(boxes[:2], [False] * 2), make_view(others[:2], [False] * 2)]
    alone = objective(first_two(student), first_two(teacher), without, START).parts["group"]
    torch.testing.assert_close(with_all, alone)
    quirk = SlotObjective(SlotSpec(predictor_hidden=12, reference_disjoint_crops=True), HEAD).double()
    assert not torch.allclose(quirk(student, teacher, views, START).parts["group"], alone)


def test_no_overlap_at_all_is_a_zero_with_a_graph(objective: SlotObjective) -> None:
    student, teacher = [make_output(1, grad=True), make_output(2, grad=True)], [make_output(3), make_output(4)]
    views = [make_view([[0.0, 0.0, 0.2, 0.2]] * 3, [False] * 3), make_view([[0.6, 0.6, 0.9, 0.9]] * 3, [True] * 3)]
    group = objective(student, teacher, views, START).parts["group"]
    assert float(group.detach()) == 0
    group.backward()
    assert student[0].scores.grad is not None


def test_without_a_common_slot_the_slot_loss_is_a_zero_with_a_graph(objective: SlotObjective) -> None:
    student = make_output(1, grad=True)
    teacher = make_output(2)
    mine, theirs = torch.full((3, 5, 6, 6), -1.0).double(), torch.full((3, 5, 6, 6), -1.0).double()
    mine[:, 0], theirs[:, 1] = 1, 1  # the student's cells all go to slot 0, the teacher's to slot 1
    loss = objective.slot(SlotOutput(student.embedding, mine), SlotOutput(teacher.embedding, theirs))
    assert float(loss.detach()) == 0
    loss.backward()
    assert all(parameter.grad is not None for parameter in objective.predictor.parameters())


def test_flipping_a_view_and_its_maps_changes_nothing(objective: SlotObjective) -> None:
    student, teacher = [make_output(1), make_output(2)], [make_output(3), make_output(4)]
    boxes = [[0.1, 0.0, 0.7, 0.8], [0.0, 0.2, 0.9, 0.9], [0.3, 0.1, 1.0, 0.6]]
    plain = loss_of(objective, student, teacher, [make_view(boxes, [False] * 3), whole()])

    def mirrored(output: SlotOutput) -> SlotOutput:
        return SlotOutput(output.embedding.flip(3), output.scores.flip(3))

    flipped = loss_of(
        objective,
        [mirrored(student[0]), student[1]],
        [mirrored(teacher[0]), teacher[1]],
        [make_view(boxes, [True] * 3), whole()],
    )
    torch.testing.assert_close(plain, flipped)


def test_a_student_that_agrees_has_a_lower_group_loss(objective: SlotObjective) -> None:
    teacher = [make_output(3), make_output(3)]
    agreeing = objective([make_output(3), make_output(3)], teacher, [whole(), whole()], START).parts["group"]
    differing = objective([make_output(5), make_output(6)], teacher, [whole(), whole()], START).parts["group"]
    assert agreeing < differing


def test_active_slots_win_a_cell() -> None:
    scores = torch.zeros(1, 3, 2, 2)
    scores[0, 2] = 1
    scores[0, 1, 0, 0] = 2
    assert active(scores).tolist() == [[False, True, True]]


def test_the_centre_moves_only_in_update(objective: SlotObjective) -> None:
    student, teacher = [make_output(1), make_output(2)], [make_output(3), make_output(4)]
    before = objective.centre.clone()
    loss_of(objective, student, teacher, [whole(), whole()])
    assert torch.equal(objective.centre, before)
    objective.update(student, teacher)
    mean = torch.stack([output.scores.mean((0, 2, 3)) for output in teacher]).mean(0)
    torch.testing.assert_close(objective.centre[0], 0.1 * mean)


def test_saved_and_loaded_the_next_loss_is_bit_equal(objective: SlotObjective) -> None:
    student, teacher = [make_output(1), make_output(2)], [make_output(3), make_output(4)]
    objective.update(student, teacher)
    other = SlotSpec(predictor_hidden=12).build(HEAD).double()
    other.load_state_dict(copy.deepcopy(objective.state_dict()))
    views = [whole(), whole()]
    assert torch.equal(loss_of(objective, student, teacher, views), loss_of(other, student, teacher, views))


def test_wrong_heads_and_numbers_of_views_get_a_sentence(objective: SlotObjective) -> None:
    with pytest.raises(DovetailError, match="needs a slot head"):
        SlotSpec().build(VectorHeadSpec(8, 4))
    with pytest.raises(DovetailError, match="two global views"):
        loss_of(objective, [make_output(1)], [make_output(2)], [whole()])


def test_slots_are_means_weighted_by_assignment() -> None:
    output = make_output(7)
    spec = SlotSpec(predictor_hidden=12, grouping_temperature=0.3, grouping_eps=0.05)
    slots = spec.build(HEAD).double().slots(output)
    for image in range(3):
        cells, scores = output.embedding[image].flatten(1).T, output.scores[image].flatten(1).T  # [N, D], [N, K]
        share = torch.softmax(scores / 0.3, dim=1) + 0.05
        for slot in range(5):
            mean = (share[:, slot, None] * cells).sum(0) / share[:, slot].sum()
            torch.testing.assert_close(slots[image, slot], mean)


def test_the_group_weight_shares_out_the_loss() -> None:
    student, teacher = [make_output(1), make_output(2)], [make_output(3), make_output(4)]
    objective = SlotSpec(predictor_hidden=12, group_weight=0.3).build(HEAD).double()
    loss = objective(student, teacher, [whole(), whole()], START)
    torch.testing.assert_close(loss.total, 0.3 * loss.parts["group"] + 0.7 * loss.parts["slot"])


def test_one_image_with_overlap_counts_whole(objective: SlotObjective) -> None:
    student, teacher = [make_output(1), make_output(2)], [make_output(3), make_output(4)]
    boxes, others = [[0.0, 0.0, 0.4, 0.4]] * 3, [[0.1, 0.1, 0.5, 0.5]] + [[0.5, 0.5, 0.9, 0.9]] * 2
    views = [make_view(boxes, [False] * 3), make_view(others, [False] * 3)]
    with_all = objective(student, teacher, views, START).parts["group"]
    first = [[SlotOutput(one.embedding[:1], one.scores[:1]) for one in outputs] for outputs in (student, teacher)]
    alone = [make_view(boxes[:1], [False]), make_view(others[:1], [False])]
    torch.testing.assert_close(with_all, objective(*first, alone, START).parts["group"])


@pytest.mark.parametrize(("rows", "compared"), [(1, False), (2, True)])
def test_two_common_slots_are_enough(objective: SlotObjective, rows: int, compared: bool) -> None:
    student, teacher = make_output(1, batch=2), make_output(2, batch=2)
    for slot, output in ((0, student), (0 if rows == 2 else 1, teacher)):
        output.scores.fill_(-1)[:, slot] = 1
    teacher.scores[1, 0] = 1.5  # in the second image, slot 0 is common in either case
    assert bool(objective.slot(student, teacher) > 0) is compared


def test_scores_and_slots_stay_in_full_precision_under_autocast() -> None:
    torch.manual_seed(0)
    head, objective = HEAD.build(4), SlotSpec(predictor_hidden=12).build(HEAD)
    output = SlotOutput(torch.randn(2, 6, 4, 4), torch.rand(2, 5, 4, 4) * 2 - 1)
    exact = objective.slots(output)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(torch.randn(2, 4, 4, 4)).scores.dtype == torch.float32
        assert torch.equal(objective.slots(output), exact)


def picked_out(objective: SlotObjective, student: SlotOutput, teacher: SlotOutput) -> Tensor:
    """The slot loss by picking rows out with masks, as the paper writes it."""
    mine, theirs = active(student.scores), active(teacher.scores)
    common = mine & theirs
    queries = torch.nn.functional.normalize(objective.predictor(objective.slots(student)[common]), dim=1)
    keys = torch.nn.functional.normalize(objective.slots(teacher)[theirs], dim=1)
    row = (theirs.flatten().cumsum(0) - 1).view_as(theirs)[common]
    temperature = objective.spec.contrast_temperature
    return torch.nn.functional.cross_entropy(queries @ keys.T / temperature, row) * 2 * temperature


@pytest.mark.parametrize("side", [1, 2, 6])
@pytest.mark.parametrize("on_host", [True, False])
def test_shapes_that_depend_on_no_number_change_nothing(
    objective: SlotObjective, side: int, on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 1, 4 and 36 cells for 5 prototypes, so that there are fewer and more cells than slots."""
    monkeypatch.setattr(slots, "on_host", lambda value: on_host)
    student, teacher = make_output(1, side=side, grad=True), make_output(2, side=side)
    other = copy.deepcopy(objective)
    if side == 1:
        student.scores.data[:, 2] = 3
        teacher.scores[:, 2] = 3
    expected = picked_out(other, student, teacher)
    expected.backward()
    gradient, student.embedding.grad = student.embedding.grad.clone(), None
    found = objective.slot(student, teacher)
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(student.embedding.grad, gradient, rtol=1e-9, atol=1e-12)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(objective.state_dict()[name], value, msg=name)
