"""Barlow Twins: cross-correlation, loss in every convention, gradients."""

from __future__ import annotations

from collections.abc import Iterator

from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.decorrelate import BarlowSpec, cross_correlation
from dovetail.schedules import Moment
from tests.golden.check_byol import input_gradients
from tests.golden.vectors import Comparison, Golden


def check(golden: Golden) -> Iterator[Comparison]:
    eps = golden.config["bn_eps"]
    for case, constants in golden.config["cases"].items():
        tensors = golden.under(case)
        views = [tensors[f"view{view}"].requires_grad_() for view in (1, 2)]
        spec = BarlowSpec(constants["off_diagonal_weight"], constants["loss_scale"], eps)
        loss = spec.build(VectorHeadSpec(dim=views[0].shape[1]))(views, [], [], Moment(0, 1, 1))
        loss.total.backward()
        yield Comparison(f"{case} loss", loss.total, tensors["expected.loss"])
        yield from input_gradients(case, views, tensors, "view")
        correlation = cross_correlation(*views, eps=eps)
        yield Comparison(f"{case} cross-correlation", correlation, tensors["expected.cross_correlation"])
