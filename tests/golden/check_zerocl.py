"""ZeroCL: whitening matrices, whitened views, the loss of both modes and their sum, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.whiten import ZeroCL, ZeroCLSpec, standardise, whitening_matrix
from dovetail.schedules import Moment
from tests.golden.check_byol import input_gradients
from tests.golden.vectors import Comparison, Golden


def check(golden: Golden) -> Iterator[Comparison]:
    for case, constants in golden.config["cases"].items():
        yield from check_mode(golden, f"fea_{case}", "feature", constants["D"])
        yield from check_mode(golden, f"ins_{case}", "instance", constants["D"])
        yield from check_sum(golden, case, constants["D"])


def objective_of(golden: Golden, mode: Literal["both", "feature", "instance"], dim: int) -> ZeroCL:
    """Return the objective with the stored constants."""
    spec = ZeroCLSpec(mode, golden.config["whitening_eps"], golden.config["std_eps"])
    return spec.build(VectorHeadSpec(dim=dim))


def check_mode(golden: Golden, case: str, mode: Literal["feature", "instance"], dim: int) -> Iterator[Comparison]:
    """One of the two modes."""
    tensors, objective = golden.under(case), objective_of(golden, mode, dim)
    views = [tensors[f"view{view}"].requires_grad_() for view in (1, 2)]
    loss = objective(views, [], [], Moment(0, 1, 1))
    loss.total.backward()
    yield Comparison(f"{case} loss", loss.total, tensors["expected.loss"])
    yield from input_gradients(case, views, tensors, "view")
    for index, view in enumerate(views, start=1):
        samples = view.detach() if mode == "feature" else view.detach().T
        matrix = whitening_matrix(standardise(samples, eps=objective.spec.std_eps), eps=objective.spec.whitening_eps)
        yield Comparison(f"{case} whitening matrix {index}", matrix, tensors[f"expected.whitening_matrix{index}"])
        yield Comparison(f"{case} whitened {index}", objective.whitened(samples), tensors[f"expected.whitened{index}"])


def check_sum(golden: Golden, case: str, dim: int) -> Iterator[Comparison]:
    """Both modes together; the same views are stored with either, or the sum is of two pairs of views."""
    views = {mode: [golden[f"{mode}_{case}.view{view}"] for view in (1, 2)] for mode in ("fea", "ins")}
    objective = objective_of(golden, "both", dim)
    both = {mode: objective(pair, [], [], Moment(0, 1, 1)) for mode, pair in views.items()}
    total = both["fea"].parts["feature"] + both["ins"].parts["instance"]
    yield Comparison(f"sum_{case} loss", total, golden[f"sum_{case}.expected.loss"])
    if all(a.equal(b) for a, b in zip(views["fea"], views["ins"], strict=True)):
        yield Comparison(f"sum_{case} total", both["fea"].total, golden[f"sum_{case}.expected.loss"])
