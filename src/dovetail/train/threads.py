"""Number of CPU threads of a run.

Other numbers of threads add numbers in another order, which changes the last digits of sums and, after some steps, the
weights. A checkpoint therefore records the number, and a resumed run says if it has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from dovetail.train.defaults import Settings

KEY = "threads"

log = logging.getLogger(__name__)


def threads_of(settings: Settings) -> int | None:
    """Return the number of threads of a run on the CPU; None on a GPU, where it has no effect on the weights."""
    return torch.get_num_threads() if settings.accelerator == "cpu" else None


def tell_of_threads(state: Mapping[str, Any], settings: Settings) -> None:
    """Warn if a run resumes from the checkpoint `state` with another number of threads. Old ones have no record."""
    then, now = state.get(KEY), threads_of(settings)
    if isinstance(then, int) and now is not None and then != now:
        log.warning(
            "The run used %d CPU threads and resumes with %d, so its weights will differ in the last digits from those "
            "of a run that was never stopped. To avoid this, resume with OMP_NUM_THREADS=%d in front of the command.",
            *(then, now, then),
        )
