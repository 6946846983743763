"""SimCLR: NT-Xent of two and of three views, and their gradients, kept whole and in blocks."""

from __future__ import annotations

from collections.abc import Iterator

from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.contrast import NTXentSpec
from dovetail.schedules import Moment
from tests.golden.vectors import Comparison, Golden


def check(golden: Golden) -> Iterator[Comparison]:
    for case, constants in golden.config["cases"].items():
        for rows in (None, 2):
            yield from check_case(golden, case, constants["temperature"], rows)


def check_case(golden: Golden, case: str, temperature: float, rows: int | None) -> Iterator[Comparison]:
    """One case, with all rows at once or `rows` at a time."""
    inputs = {name: value.clone() for name, value in golden.under(case).items() if "." not in name}
    for value in inputs.values():
        value.requires_grad_()
    views = list(inputs["views"]) if "views" in inputs else [inputs["view1"], inputs["view2"]]
    spec = NTXentSpec(temperature=temperature, rows_per_block=rows)
    objective = spec.build(VectorHeadSpec(dim=views[0].shape[1]))
    loss = objective(views, [], [], Moment(0, 1, 1))
    loss.total.backward()
    label = f"{case} rows={rows}"
    yield Comparison(f"{label} loss", loss.total, golden[f"{case}.expected.loss"])
    for name, value in inputs.items():
        assert value.grad is not None
        yield Comparison(f"{label} grad {name}", value.grad, golden[f"{case}.expected.grad.{name}"])
