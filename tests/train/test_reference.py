"""The quirks of official code that change what the teacher becomes."""

from __future__ import annotations

import pytest
import torch

from dovetail.schedules import Moment
from dovetail.train.reference import ReferenceLearner
from tests.tiny import tiny_learner


def test_the_double_counter_is_at_one_in_the_middle_and_falls_back() -> None:
    plain = tiny_learner("decon-sl")
    quirk = tiny_learner("decon-sl", reference_double_momentum_counter=True)
    at = [Moment(step, 100, 10) for step in (0, 25, 50, 100)]
    assert [quirk.momentum(moment) for moment in at] == pytest.approx([0.99, 0.995, 1.0, 0.99])
    assert [plain.momentum(moment) for moment in at] == pytest.approx([0.99, 0.99 + 0.01 * 0.146446609, 0.995, 1.0])
    assert isinstance(quirk, ReferenceLearner)
    assert not isinstance(plain, ReferenceLearner)
    assert quirk.momentum_of_part(at[1], decoder=True) > quirk.momentum(at[1])


def test_frozen_prototypes_are_the_decoders_alone() -> None:
    learner = tiny_learner("decon-sl", reference_frozen_prototypes=True)
    assert learner.teacher is not None
    before = {name: value.clone() for name, value in learner.teacher.named_parameters()}
    with torch.no_grad():
        for parameter in learner.student.parameters():
            parameter.add_(1.0)
    learner.move_teacher(Moment(10, 100, 10))
    still = {name for name, value in learner.teacher.named_parameters() if torch.equal(value, before[name])}
    assert still == {"heads.decoder_p2.prototypes.weight"}


def test_without_quirks_both_learners_move_the_teacher_alike() -> None:
    plain = tiny_learner("decon-sl")
    other = ReferenceLearner(plain.recipe, tiny_learner("decon-sl").student.network)
    other.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for one, two in zip(plain.student.parameters(), other.student.parameters(), strict=True):
            two.copy_(one.add_(torch.randn_like(one)))
    for learner in (plain, other):
        learner.move_teacher(Moment(10, 100, 10))
    assert plain.teacher is not None
    assert other.teacher is not None
    for one, two in zip(plain.teacher.parameters(), other.teacher.parameters(), strict=True):
        assert torch.equal(one, two)
