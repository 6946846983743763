"""VICReg: its three terms, the loss in both conventions, gradients."""

from __future__ import annotations

from collections.abc import Iterator

from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.decorrelate import VICRegSpec
from dovetail.schedules import Moment
from tests.golden.check_byol import input_gradients
from tests.golden.vectors import Comparison, Golden


def check(golden: Golden) -> Iterator[Comparison]:
    for case, constants in golden.config["cases"].items():
        tensors = golden.under(case)
        views = [tensors[f"view{view}"].requires_grad_() for view in (1, 2)]
        spec = VICRegSpec(
            invariance_weight=constants["invariance_weight"],
            variance_weight=constants["variance_weight"],
            covariance_weight=constants["covariance_weight"],
            variance_scale={"solo": 1.0, "lightly": 0.5}[constants["convention"]],
            eps=golden.config["eps"],
        )
        loss = spec.build(VectorHeadSpec(dim=views[0].shape[1]))(views, [], [], Moment(0, 1, 1))
        loss.total.backward()
        yield Comparison(f"{case} loss", loss.total, tensors["expected.loss"])
        yield from input_gradients(case, views, tensors, "view")
        for name in ("invariance", "variance", "covariance"):
            yield Comparison(f"{case} {name}", loss.parts[name], tensors[f"expected.{name}"])
