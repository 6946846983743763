"""Images are read as runs read them."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def images_are_read_here() -> None:
    """Leave it to the loaders, as these tests are of them."""
