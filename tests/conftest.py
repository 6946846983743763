"""For all tests: the same random numbers, one thread each, and how many examples hypothesis draws."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# A test that names its own number of examples keeps it. No example has a time limit: a busy machine fails no test.
settings.register_profile("quick", max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("quick")
# `pytest --hypothesis-profile=thorough`
settings.register_profile("thorough", max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))


os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

# A shell that starts the tests in the background has these ignored, and children inherit that.
if os.name == "posix":
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


# What is imported and collected stays to the end, and looking through it for garbage again and again takes seconds.
gc.disable()


def pytest_collection_finish() -> None:
    """Collect the garbage of tests alone from here on, and seldom: looking for it took a twentieth of their time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()
    look_for_callbacks_once()


def look_for_callbacks_once() -> None:
    """Lightning reads the files of every installed package for each of its trainers; one time is enough here."""
    registry = sys.modules.get("lightning.fabric.utilities.registry")
    if registry is not None:
        vars(registry)["entry_points"] = functools.cache(vars(registry)["entry_points"])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test computes on one thread, whatever a library set before it: `-n 2` uses two cores as it is.

    Threads that share a core wait for each other at every step of a tiny network, which took most of the suite's time.
    """
    import torch  # not by the process that only hands out the tests of `-n 2`

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Every test draws the same numbers whatever ran before it, so that a failure can be seen again."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_methods() -> Iterator[None]:
    """The table of methods is as it was before; tests put methods from outside into it."""
    from dovetail.recipes import registry

    before = dict(registry.METHODS)
    yield
    registry.METHODS.clear()
    registry.METHODS.update(before)


@pytest.fixture(autouse=True)
def images_are_read_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs with `workers=0` read images in this process, as where processes cannot fork; tests marked `forks` fork.

    To copy this process, which is large by all that it has imported, takes a third of the time of a tiny run.
    """
    if request.node.get_closest_marker("forks") is None:
        from dovetail.data import loader

        monkeypatch.setattr(loader, "can_fork", lambda: False)
