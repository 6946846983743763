"""Runs that tests of several files compare with."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests.train.runs import run, settings


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights after a whole run of the usual settings."""
    learner, _ = run(tmp_path_factory.mktemp("whole"), settings())
    return learner.state_dict()
