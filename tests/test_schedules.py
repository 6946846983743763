"""Schedules beyond the golden ones: ends, bounds, warm-up forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.schedules import Cosine, LinearByEpoch, Moment, WarmupCosine, scaled, value_at

numbers = st.floats(-10, 10)


@given(start=numbers, end=numbers, step=st.integers(0, 1000), total=st.integers(1, 1000))
def test_cosine_stays_between_its_ends(start: float, end: float, step: int, total: int) -> None:
    value = Cosine(start, end)(Moment(min(step, total), total, 10))
    assert min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9


@given(
    peak=st.floats(0.01, 10),
    share=st.floats(0, 1),
    epochs=st.integers(0, 5),
    step=st.integers(0, 99),
    twice=st.booleans(),
)
def test_warmup_never_passes_the_peak(peak: float, share: float, epochs: int, step: int, twice: bool) -> None:
    schedule = WarmupCosine(peak * share, peak, 0.0, epochs, peak_twice=twice)
    assert 0 <= schedule(Moment(step, 100, 10)) <= peak * (1 + 1e-12)


def test_warmup_reaches_the_peak_once_or_twice() -> None:
    for twice, peaks in ((False, 1), (True, 2)):
        schedule = WarmupCosine(0.1, 1.0, 0.0, 2, peak_twice=twice)
        values = [schedule(Moment(step, 50, 5)) for step in range(50)]
        assert sum(value == pytest.approx(1.0) for value in values) == peaks
        assert values[10] == pytest.approx(1.0)
        assert values[0] == pytest.approx(0.1)


def test_a_run_shorter_than_its_warmup_has_no_cosine() -> None:
    schedule = WarmupCosine(0.0, 1.0, 0.0, 5)
    assert [schedule(Moment(step, 4, 2)) for step in range(4)] == [0.0, 0.1, 0.2, pytest.approx(0.3)]


def test_linear_by_epoch_is_constant_within_an_epoch_and_after_its_end() -> None:
    schedule = LinearByEpoch(0.04, 0.07, 4)
    values = [schedule(Moment(step, 12, 2)) for step in range(12)]
    assert values[0] == values[1] == 0.04
    assert values[2] == pytest.approx(0.05)
    assert values[6:] == [0.07] * 6


@given(factor=st.floats(0, 2), step=st.integers(0, 99))
def test_scaled_multiplies_every_value(factor: float, step: int) -> None:
    moment = Moment(step, 100, 10)
    for schedule in (0.3, Cosine(0.1, 1.0), WarmupCosine(0.0, 1.0, 0.1, 3), LinearByEpoch(0.1, 0.4, 5)):
        assert value_at(scaled(schedule, factor), moment) == pytest.approx(factor * value_at(schedule, moment))
