"""MoCo v2: InfoNCE against a queue one way and both ways, gradients, the queues afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.contrast import QueueContrast, QueueContrastSpec
from dovetail.schedules import Moment
from tests.golden.vectors import Comparison, Golden, load


def check(golden: Golden) -> Iterator[Comparison]:
    for case, constants in golden.config["cases"].items():
        both = f"{case}.queues" in golden.tensors
        yield from (check_symmetric if both else check_one_way)(golden, case, constants["temperature"])


def objective_of(golden: Golden, case: str, temperature: float, *, symmetric: bool) -> QueueContrast:
    """Return the objective with the stored queue or queues."""
    stored = golden[f"{case}.queues"] if symmetric else golden[f"{case}.queue"][None]  # [queues, D, K]
    spec = QueueContrastSpec(temperature=temperature, queue=stored.shape[2], symmetric=symmetric, rows_per_block=3)
    objective = spec.build(VectorHeadSpec(dim=stored.shape[1]))
    state = {f"queues.{index}.vectors": queue for index, queue in enumerate(stored)}
    pointer = golden[f"{case}.queue_pointer"].reshape(1)
    load(objective, state | {f"queues.{index}.pointer": pointer for index in range(len(stored))})
    return objective


def check_one_way(golden: Golden, case: str, temperature: float) -> Iterator[Comparison]:
    """The first view asks, the second answers; what is made of the other two outputs must not matter."""
    tensors = golden.under(case)
    query, key = tensors["query"].requires_grad_(), tensors["key"]
    objective = objective_of(golden, case, temperature, symmetric=False)
    outputs = [query, query.detach().flip(0)], [key.flip(0), key]
    loss = objective(*outputs, [], Moment(0, 1, 1))
    loss.total.backward()
    objective.update(*outputs)
    (queue,) = (queue for _, queue in objective.queue_of_view())
    assert query.grad is not None
    yield Comparison(f"{case} loss", loss.total, tensors["expected.loss"])
    yield Comparison(f"{case} grad query", query.grad, tensors["expected.grad.query"])
    yield Comparison(f"{case} new queue", queue.vectors, tensors["expected.new_queue"])
    yield Comparison(f"{case} pointer", queue.pointer, tensors["expected.new_queue_pointer"].reshape(1))


def check_symmetric(golden: Golden, case: str, temperature: float) -> Iterator[Comparison]:
    """Each view asks the other, each with its own queue."""
    tensors = golden.under(case)
    queries = [tensors[f"query{view}"].requires_grad_() for view in (1, 2)]
    keys = [tensors[f"key{view}"] for view in (1, 2)]
    objective = objective_of(golden, case, temperature, symmetric=True)
    loss = objective(queries, keys, [], Moment(0, 1, 1))
    loss.total.backward()
    objective.update(queries, keys)
    queues = [queue for _, queue in objective.queue_of_view()]
    yield Comparison(f"{case} loss", loss.total, tensors["expected.loss"])
    for view, query in enumerate(queries, start=1):
        assert query.grad is not None
        yield Comparison(f"{case} grad query{view}", query.grad, tensors[f"expected.grad.query{view}"])
    made = torch.stack([queue.vectors for queue in queues])
    yield Comparison(f"{case} new queues", made, tensors["expected.new_queues"])
    for queue in queues:
        yield Comparison(f"{case} pointer", queue.pointer, tensors["expected.new_queue_pointer"].reshape(1))
