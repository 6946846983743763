"""BYOL: both conventions, the predictor, several crops, gradients."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.regress import Regress, RegressSpec
from dovetail.objectives.vector import PredictorSpec
from dovetail.schedules import Moment
from tests.golden.vectors import Comparison, Golden, gradients, load, use_eps


def check(golden: Golden) -> Iterator[Comparison]:
    yield from check_symmetric(golden)
    yield from check_predictor(golden)
    yield from check_multi_crop(golden)


def plain(dim: int) -> Regress:
    """Return the objective on predictions."""
    return RegressSpec(predictor=None).build(VectorHeadSpec(dim=dim))


def check_symmetric(golden: Golden) -> Iterator[Comparison]:
    """Predictions and targets of two views, in the paper's convention and in lightly's."""
    tensors, dim = golden.under("symmetric"), golden.config["D"]
    predictions = [tensors[f"prediction{view}"].requires_grad_() for view in (1, 2)]
    targets = [tensors[f"target{view}"] for view in (1, 2)]
    loss = plain(dim)(predictions, targets, [], Moment(0, 1, 1))
    loss.total.backward()
    yield Comparison("symmetric loss", loss.total, tensors["expected.loss"])
    yield from input_gradients("symmetric", predictions, tensors, "prediction")
    spec = RegressSpec(convention="negative_cosine", predictor=None)
    other = spec.build(VectorHeadSpec(dim=dim))(predictions, targets, [], Moment(0, 1, 1))
    expected = tensors["expected.loss_lightly_half_sum_of_negative_cosines"]
    yield Comparison("symmetric negative cosine", other.total, expected)


def input_gradients(case: str, inputs: list[Tensor], tensors: dict[str, Tensor], name: str) -> Iterator[Comparison]:
    """Gradients at the inputs of views 1 and 2."""
    for view, value in enumerate(inputs, start=1):
        assert value.grad is not None
        yield Comparison(f"{case} grad {name}{view}", value.grad, tensors[f"expected.grad.{name}{view}"])


def check_predictor(golden: Golden) -> Iterator[Comparison]:
    """Projections of two views, through the predictor one at a time."""
    case, config = "with_predictor", golden.config
    tensors = golden.under(case)
    spec = RegressSpec(predictor=PredictorSpec(config["hidden"]))
    objective = spec.build(VectorHeadSpec(dim=config["D"]))
    load(objective.predictor, golden.under(f"{case}.predictor"))
    use_eps(objective, batch_norm=config["bn_eps"])
    projections = [tensors[f"projection{view}"].requires_grad_() for view in (1, 2)]
    targets = [tensors[f"target{view}"] for view in (1, 2)]
    loss = objective(projections, targets, [], Moment(0, 1, 1))
    loss.total.backward()
    yield Comparison(f"{case} loss", loss.total, tensors["expected.loss"])
    yield from input_gradients(case, projections, tensors, "projection")
    for view, projection in enumerate(projections, start=1):
        prediction = objective.predictor(projection)
        yield Comparison(f"{case} prediction{view}", prediction, tensors[f"expected.prediction{view}"])
    expected = golden.under(f"{case}.expected.grad.predictor")
    for one in gradients(objective.predictor, f"{case} predictor", expected):
        # A bias before BatchNorm has no gradient but rounding.
        cancels = one.what.endswith("0.linear.bias")
        yield Comparison(one.what, one.ours, one.expected, scale=1.0 if cancels else None)


def check_multi_crop(golden: Golden) -> Iterator[Comparison]:
    """More predictions than targets: the sum over all pairs of different views."""
    tensors = golden.under("multi_crop")
    predictions = tensors["predictions"].requires_grad_()
    loss = plain(golden.config["D"])(list(predictions), list(tensors["targets"]), [], Moment(0, 1, 1))
    loss.total.backward()
    assert predictions.grad is not None
    yield Comparison("multi_crop loss", loss.total, tensors["expected.loss"])
    yield Comparison("multi_crop grad predictions", predictions.grad, tensors["expected.grad.predictions"])
