"""Counter-based random streams: every draw is a pure function of (seed, epoch, index, purpose).

Workers have no random state, so results do not depend on their number, their order, or on resuming.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

_WORD = (1 << 64) - 1


class Purpose(IntEnum):
    """Purpose of a stream; streams of different purposes never share numbers."""

    ORDER = 0
    VIEWS = 1
    REPLACEMENT = 2


def stream(purpose: Purpose, *, seed: int, epoch: int, index: int = 0) -> np.random.Generator:
    """Return the generator of one image (`index`) in one `epoch` of the run with `seed`.

    Philox 4x64 with the key (seed, epoch) and the counter's high words (purpose, index): a stream would have to
    draw 2^128 blocks to reach the next one.
    """
    key = np.array([seed & _WORD, epoch & _WORD], dtype=np.uint64)
    counter = np.array([0, 0, index & _WORD, int(purpose)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
