"""For all tests: the same random numbers, and how many examples hypothesis draws (a hundred; two thousand in all)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# `pytest --hypothesis-profile=thorough`; a test that names its own number of examples keeps it.
settings.register_profile("thorough", max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))


# A shell that starts the tests in the background has these ignored, and children inherit that.
if os.name == "posix":
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Every test draws the same numbers whatever ran before it, so that a failure can be seen again."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_methods() -> Iterator[None]:
    """The table of methods is as it was before; tests put methods from outside into it."""
    from dovetail.recipes import registry

    before = dict(registry.METHODS)
    yield
    registry.METHODS.clear()
    registry.METHODS.update(before)
