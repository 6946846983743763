from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dovetail.errors import DovetailError
from dovetail.objectives.queue import Queue


def marked(*marks: float) -> Tensor:
    """Return keys [B, 2] whose first component is a mark."""
    return torch.stack([torch.tensor(marks), torch.zeros(len(marks))], dim=1)


def test_starts_with_unit_columns() -> None:
    assert_close(Queue(4, 10).vectors.norm(dim=0), torch.ones(10))


def test_keys_follow_each_other_and_go_on_at_the_start() -> None:
    queue = Queue(2, 5)
    queue.push(marked(1, 2, 3))
    queue.push(marked(4, 5, 6))
    assert queue.vectors[0].tolist() == [6, 2, 3, 4, 5]
    assert queue.pointer.tolist() == [1]


def test_pointer_returns_to_the_start_when_the_batch_ends_at_the_end() -> None:
    queue = Queue(2, 4)
    queue.push(marked(1, 2))
    queue.push(marked(3, 4))
    assert queue.vectors[0].tolist() == [1, 2, 3, 4]
    assert queue.pointer.tolist() == [0]


def test_of_more_keys_than_places_the_last_stay_where_they_would_have_come() -> None:
    at_once, one_by_one = Queue(2, 3), Queue(2, 3)
    at_once.push(marked(1, 2, 3, 4, 5))
    for mark in (1, 2, 3, 4, 5):
        one_by_one.push(marked(mark))
    assert torch.equal(at_once.vectors, one_by_one.vectors)
    assert torch.equal(at_once.pointer, one_by_one.pointer)


def test_push_before_backward_does_not_disturb_the_gradient() -> None:
    queue, query = Queue(2, 3), torch.ones(1, 2, requires_grad=True)
    expected = queue.vectors.sum(dim=1)
    loss = (query @ queue.negatives()).sum()
    queue.push(marked(7, 8))
    loss.backward()
    assert query.grad is not None
    assert_close(query.grad[0], expected)


def test_is_saved_and_loaded() -> None:
    queue, other = Queue(2, 5), Queue(2, 5)
    queue.push(marked(1, 2, 3))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.push(marked(4, 5, 6))
    assert torch.equal(queue.vectors, other.vectors)


def test_length_must_be_positive() -> None:
    with pytest.raises(DovetailError, match="at least 1"):
        Queue(2, 0)
