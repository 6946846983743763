from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from dovetail.errors import DovetailError
from dovetail.heads.dense import DenseHeadSpec, PixelHeadSpec, PixelOutput
from dovetail.objectives.objective import Loss
from dovetail.objectives.pixels import PixelConsistency, PixelConsistencySpec, cell_centres, near
from dovetail.schedules import Moment
from dovetail.views.view import View

NOW = Moment(0, 1, 1)
DIM = 5


def objective(**settings: Any) -> PixelConsistency:
    torch.manual_seed(1)
    spec = PixelConsistencySpec(**settings)
    return spec.build(PixelHeadSpec(hidden=6, dim=DIM, instance=spec.instance_weight > 0))


def output(batch: int = 3, height: int = 3, width: int = 4, *, gradient: bool = False) -> PixelOutput:
    shape = (batch, DIM, height, width)
    return PixelOutput(torch.randn(shape, requires_grad=gradient), torch.randn(shape, requires_grad=gradient))


def view(*boxes: tuple[float, float, float, float], flipped: bool = False, size: tuple[int, int] = (101, 81)) -> View:
    count = len(boxes)
    source = torch.tensor(size, dtype=torch.float32).expand(count, 2)
    return View(torch.zeros(count, 3, 1, 1), torch.tensor(boxes), torch.full((count,), flipped), source)


def overlapping() -> list[View]:
    first = view((0.0, 0.0, 0.6, 0.7), (0.1, 0.2, 0.9, 0.9), (0.3, 0.1, 0.8, 0.6))
    second = view((0.2, 0.1, 0.9, 0.8), (0.0, 0.1, 0.7, 1.0), (0.2, 0.2, 0.7, 0.9), flipped=True)
    return [first, second]


def loss_of(module: PixelConsistency, first: PixelOutput, second: PixelOutput, views: list[View]) -> Loss:
    return module([first, second], [first, second], views, NOW)


def mirrored(value: PixelOutput) -> PixelOutput:
    return PixelOutput(value.embedding.flip(3), value.instance.flip(3))


def slow_pixel_loss(module: PixelConsistency, query: Tensor, key: Tensor, views: list[View]) -> Tensor:
    """One direction, pair by pair."""
    mask = near(cell_centres(views[0], query), cell_centres(views[1], key), distance=module.spec.distance)
    query = F.normalize(module.propagate(query), dim=1).flatten(2)
    key, images = F.normalize(key, dim=1).flatten(2), []
    for image in range(len(query)):
        pairs = mask[image].nonzero().tolist()
        cosines = [query[image, :, i] @ key[image, :, j] for i, j in pairs]
        images.append(torch.stack(cosines).sum() / (len(cosines) + 1e-6) if cosines else torch.zeros(()))
    return -2 * torch.stack(images).mean()


def test_centres_lie_on_a_grid_between_the_corner_pixels() -> None:
    one = view((0.0, 0.0, 1.0, 0.5), size=(101, 102))  # corners 0..100 of 100 and 0..50 of 101
    centres = cell_centres(one, torch.zeros(1, 1, 1, 4))
    assert_close(centres.xy[0, :, 0], torch.tensor([0.125, 0.375, 0.625, 0.875]))
    assert_close(centres.xy[0, :, 1], torch.full((4,), 25 / 101))
    assert_close(centres.diagonal, torch.tensor([(0.25**2 + (50 / 101) ** 2) ** 0.5]))


def test_cells_of_a_flipped_view_count_from_the_right() -> None:
    boxes = ((0.1, 0.2, 0.7, 0.9),)
    cells = torch.zeros(1, 1, 2, 3)
    plain, flipped = cell_centres(view(*boxes), cells), cell_centres(view(*boxes, flipped=True), cells)
    assert_close(flipped.xy.view(1, 2, 3, 2).flip(2), plain.xy.view(1, 2, 3, 2))
    assert_close(flipped.diagonal, plain.diagonal)


def test_a_square_cell_is_near_itself_but_not_its_neighbour() -> None:
    """Neighbours are 1 / sqrt(2) = 0.707 diagonals apart, just above 0.7."""
    centres = cell_centres(view((0.0, 0.0, 1.0, 1.0), size=(90, 90)), torch.zeros(1, 1, 4, 4))
    assert torch.equal(near(centres, centres, distance=0.7)[0], torch.eye(16, dtype=torch.bool))
    assert int(near(centres, centres, distance=0.71).sum()) == 16 + 2 * 2 * 12


def test_distance_counts_in_the_larger_of_both_diagonals() -> None:
    small, large = view((0.0, 0.0, 0.2, 0.2), size=(90, 90)), view((0.0, 0.0, 1.0, 1.0), size=(90, 90))
    cells = torch.zeros(1, 1, 2, 2)
    mask = near(cell_centres(small, cells), cell_centres(large, cells), distance=0.7)
    assert mask[0, :, 0].all()  # all small cells lie in the first large one, within 0.7 of its diagonal
    assert not mask[0, :, 3].any()


@pytest.mark.parametrize("pairs_at_once", [2**26, 60])
def test_loss_is_that_of_the_pairs_one_by_one(pairs_at_once: int) -> None:
    torch.manual_seed(0)
    module, first, second = objective(pairs_at_once=pairs_at_once), output(), output()
    views = overlapping()
    expected = slow_pixel_loss(module, first.embedding, second.embedding, views)
    expected = expected + slow_pixel_loss(module, second.embedding, first.embedding, views[::-1])
    assert_close(loss_of(module, first, second, views).total, expected)


def test_propagation_is_the_sum_of_like_cells() -> None:
    torch.manual_seed(0)
    module, embedding = objective(gamma=3.0), torch.randn(1, DIM, 2, 3)
    cells = F.normalize(embedding, dim=1).flatten(2)[0].T
    values = F.normalize(module.value_transform(embedding), dim=1).flatten(2)[0].T
    expected = [sum(max(float(x @ other), 0.0) ** 3 * v for other, v in zip(cells, values, strict=True)) for x in cells]
    assert_close(module.propagate(embedding).flatten(2)[0].T, torch.stack(expected))


def test_propagation_in_pieces_has_the_same_value_and_gradient() -> None:
    results = []
    for pairs_at_once in (2**26, 50):
        module = objective(pairs_at_once=pairs_at_once).double()
        embedding = torch.randn(3, DIM, 3, 4, dtype=torch.float64, requires_grad=True)  # seeded by `objective`
        value = module.propagate(embedding)
        value.square().sum().backward()
        results.append((value.detach(), embedding.grad, [parameter.grad for parameter in module.parameters()]))
    assert_close(results[0], results[1])


def test_without_transform_layers_there_is_nothing_to_learn() -> None:
    assert not list(objective(transform_layers=0).parameters())
    assert len(list(objective(transform_layers=2).parameters())) == 6  # two convolutions, one BatchNorm


def test_flipping_a_views_pixels_and_flag_together_changes_nothing() -> None:
    torch.manual_seed(0)
    module, first, second = objective(instance_weight=1.0), output(), output()
    views = overlapping()
    expected = loss_of(module, first, second, views).total
    flipped = [replace(views[0], flipped=~views[0].flipped), views[1]]
    assert_close(loss_of(module, mirrored(first), second, flipped).total, expected)
    assert not torch.allclose(loss_of(module, mirrored(first), second, views).total, expected)


def test_order_of_the_batch_does_not_matter() -> None:
    torch.manual_seed(0)
    module, first, second = objective(instance_weight=1.0), output(), output()
    views, order = overlapping(), torch.tensor([2, 0, 1])
    moved = [replace(one, box=one.box[order], flipped=one.flipped[order]) for one in views]
    shuffled = [PixelOutput(*(part[order] for part in one)) for one in (first, second)]
    expected = loss_of(module, first, second, views).total
    assert_close(loss_of(module, *shuffled, moved).total, expected)
    assert not torch.allclose(loss_of(module, *shuffled, views).total, expected)


def test_the_order_of_the_views_does_not_matter() -> None:
    torch.manual_seed(0)
    module, first, second = objective(instance_weight=0.5), output(), output(height=5, width=2)
    views = overlapping()
    assert_close(loss_of(module, second, first, views[::-1]).total, loss_of(module, first, second, views).total)


def test_crops_apart_give_a_zero_with_a_zero_gradient() -> None:
    first, second = output(1, gradient=True), output(1)
    module = objective()
    loss = loss_of(module, first, second, [view((0.0, 0.0, 0.2, 0.2)), view((0.7, 0.7, 1.0, 1.0))]).total
    loss.backward()
    assert float(loss.detach()) == 0
    for value in (first.embedding, *module.parameters()):
        assert value.grad is not None
        assert not value.grad.any()


def test_images_without_a_pair_count_in_the_mean() -> None:
    torch.manual_seed(0)
    module, first, second = objective(), output(1), output(1)
    here, there = (0.0, 0.0, 0.5, 0.5), (0.6, 0.6, 1.0, 1.0)
    alone = loss_of(module, first, second, [view(here), view(here)]).total
    twice = [PixelOutput(*(part.repeat(2, 1, 1, 1) for part in one)) for one in (first, second)]
    assert_close(loss_of(module, *twice, [view(here, here), view(here, there)]).total, alone / 2)


def test_agreement_is_minus_four() -> None:
    """Two directions of -2: constant maps, so that the propagated vector is the transformed one, equal to the key."""
    module = objective(transform_layers=0)
    same = torch.randn(1, DIM, 1, 1).expand(2, DIM, 3, 3)
    constant = PixelOutput(same, same)
    loss = loss_of(module, constant, constant, [view((0.0, 0.0, 1.0, 1.0), (0.2, 0.0, 1.0, 0.7))] * 2).total
    assert_close(loss, torch.tensor(-4.0), rtol=1e-5, atol=0)


def test_instance_term_is_the_cosine_of_pooled_predictions_and_keys() -> None:
    torch.manual_seed(0)
    module, first, second = objective(instance_weight=0.3), output(), output(height=2, width=2)
    loss = loss_of(module, first, second, overlapping())
    assert module.instance_predictor is not None
    expected = torch.zeros(())
    for query, key in ((first, second), (second, first)):
        predicted = module.instance_predictor(query.instance).flatten(2).mean(2)
        expected = expected - 2 * F.cosine_similarity(predicted, key.instance.flatten(2).mean(2)).mean()
    assert_close(loss.parts["instance"], expected.detach())
    assert_close(loss.total, loss.parts["pixel"] + 0.3 * loss.parts["instance"])


def test_gradient_reaches_the_student_and_the_predictors_alone() -> None:
    torch.manual_seed(0)
    module = objective(instance_weight=1.0)
    student, teacher = [output(gradient=True), output(gradient=True)], [output(gradient=True), output(gradient=True)]
    module(student, teacher, overlapping(), NOW).total.backward()
    assert all(value.grad is None for one in teacher for value in one)
    reached = [value for one in student for value in one] + list(module.parameters())
    assert all(value.grad is not None for value in reached)
    assert all(bool(value.grad.any()) for one in student for value in one if value.grad is not None)


def test_maps_of_two_sizes_can_be_compared() -> None:
    torch.manual_seed(0)
    module, first, second = objective(), output(height=2, width=5), output(height=6, width=3)
    expected = slow_pixel_loss(module, first.embedding, second.embedding, overlapping())
    assert float(expected.detach()) != 0
    assert_close(module.pixel(first, second, *overlapping()), expected)


def test_after_save_and_load_the_next_loss_is_bit_equal() -> None:
    torch.manual_seed(0)
    module, first, second = objective(instance_weight=1.0), output(), output()
    loss_of(module, first, second, overlapping())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    other = objective(instance_weight=1.0)
    different = loss_of(other, first, second, overlapping()).total
    other.load_state_dict(module.state_dict())
    expected = loss_of(module, first, second, overlapping()).total
    assert torch.equal(loss_of(other, first, second, overlapping()).total, expected)
    assert not torch.equal(different, expected)


def test_loss_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    module, first, second = objective(transform_layers=0), output(), output()
    exact = loss_of(module, first, second, overlapping()).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(module, first, second, overlapping()).total
        transformed = loss_of(objective(instance_weight=1.0), first, second, overlapping()).total
    assert loss.dtype == transformed.dtype == torch.float32
    assert torch.equal(loss, exact)


def test_wrong_settings_are_refused_with_a_sentence() -> None:
    with pytest.raises(DovetailError, match=r"gamma is 0\.5"):
        PixelConsistencySpec(gamma=0.5)
    with pytest.raises(DovetailError, match="clamp is -1"):
        PixelConsistencySpec(clamp=-1)
    with pytest.raises(DovetailError, match="instance_weight is -1"):
        PixelConsistencySpec(instance_weight=-1)
    with pytest.raises(DovetailError, match="PixelHeadSpec"):
        PixelConsistencySpec().build(DenseHeadSpec())
    with pytest.raises(DovetailError, match="enable or disable both"):
        PixelConsistencySpec(instance_weight=1.0).build(PixelHeadSpec())


def test_other_than_two_views_are_refused() -> None:
    with pytest.raises(DovetailError, match="teacher 1"):
        objective()([output()] * 3, [output()], [View.of(torch.zeros(2, 3, 8, 8))] * 3, NOW)
