"""A moving average of any module."""

from __future__ import annotations

import doctest

import torch
from torch import nn

import dovetail.train.teacher
from dovetail.schedules import Cosine, Moment
from dovetail.train.teacher import Teacher


def test_the_example_runs() -> None:
    assert doctest.testmod(dovetail.train.teacher).failed == 0
    assert doctest.testmod(dovetail.train.teacher).attempted > 4


def test_it_follows_by_a_schedule_and_keeps_its_own_statistics() -> None:
    student = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    teacher = Teacher(student, momentum=Cosine(0.0, 1.0))
    with torch.no_grad():
        student[0].weight.add_(1.0)
    statistics = teacher.module[1].running_mean.clone()
    student(torch.randn(8, 4))
    teacher.follow(student, Moment(0, 10, 5))
    assert torch.equal(teacher.module[0].weight, student[0].weight)
    assert torch.equal(teacher.module[1].running_mean, statistics)
    before = teacher.module[0].weight.clone()
    with torch.no_grad():
        student[0].weight.add_(1.0)
    teacher.follow(student, Moment(10, 10, 5))
    assert torch.equal(teacher.module[0].weight, before)
    assert not teacher(torch.randn(2, 4, requires_grad=True)).requires_grad
