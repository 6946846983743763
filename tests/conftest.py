"""How many examples hypothesis draws: its usual hundred in `make test`, two thousand in `make test-all`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# `pytest --hypothesis-profile=thorough`; a test that names its own number of examples keeps it.
settings.register_profile("thorough", max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
