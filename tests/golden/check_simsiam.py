"""SimSiam: loss, predictor, gradients with the stop-gradient, and that they are not those without it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.regress import RegressSpec, regress
from dovetail.objectives.vector import PredictorSpec
from dovetail.schedules import Moment
from tests.golden.check_byol import input_gradients
from tests.golden.vectors import Comparison, Golden, gradients, load, use_eps


def check(golden: Golden) -> Iterator[Comparison]:
    tensors = golden.under("symmetric")
    predictions = [tensors[f"prediction{view}"].requires_grad_() for view in (1, 2)]
    projections = [tensors[f"projection{view}"] for view in (1, 2)]
    loss = regress(predictions, projections, convention="negative_cosine")
    loss.total.backward()
    yield Comparison("symmetric loss", loss.total, tensors["expected.loss"])
    yield from input_gradients("symmetric", predictions, tensors, "prediction")
    yield from check_predictor(golden)


def check_predictor(golden: Golden) -> Iterator[Comparison]:
    """The student's projections are input and target."""
    case, config = "with_predictor", golden.config
    tensors = golden.under(case)
    predictor = PredictorSpec(config["hidden"], bias=False, last_bias=True)
    spec = RegressSpec(targets="student", convention="negative_cosine", predictor=predictor)
    objective = spec.build(VectorHeadSpec(dim=config["D"]))
    load(objective.predictor, golden.under(f"{case}.predictor"))
    use_eps(objective, batch_norm=config["bn_eps"])
    projections = [tensors[f"projection{view}"].requires_grad_() for view in (1, 2)]
    loss = objective(projections, [], [], Moment(0, 1, 1))
    loss.total.backward()
    yield Comparison(f"{case} loss", loss.total, tensors["expected.loss"])
    yield from input_gradients(case, projections, tensors, "projection")
    for view, projection in enumerate(projections, start=1):
        prediction = objective.predictor(projection)
        yield Comparison(f"{case} prediction{view}", prediction, tensors[f"expected.prediction{view}"])
        wrong = tensors[f"wrong_without_stop_gradient.grad.projection{view}"]
        assert projection.grad is not None
        differs = torch.tensor(not torch.allclose(projection.grad, wrong, rtol=1e-3))
        yield Comparison(f"{case} stops the gradient of target {view}", differs, torch.tensor(True))
    expected = golden.under(f"{case}.expected.grad.predictor")
    yield from gradients(objective.predictor, f"{case} predictor", expected)
