"""Monitors of the teacher's prototypes, which detect both forms of collapse.

Shapes: N samples, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from dovetail.train.monitors import MIN_SAMPLES, PATIENCE, WARMING_UP

MIN_USED = 1.5
MAX_ENTROPY = 0.999


class PrototypeUse(NamedTuple):
    """Effective number of used prototypes, and mean entropy as a fraction of log K, as scalars on the device."""

    used: Tensor
    entropy: Tensor


@torch.no_grad()
def prototype_use(assignments: Tensor) -> PrototypeUse:
    """Return the use of prototypes in a sample of assignments.

    `used` is the perplexity of the mean assignment: 1 if one prototype takes every sample, K if all are used equally.
    `entropy` is 1 if every sample is spread evenly over all prototypes, which teaches nothing. DINO (arXiv 2104.14294,
    section 5.3) distinguishes its two forms of collapse in this way.

    Args:
        assignments: [N, K] float, rows that sum to 1.
    """
    mean = assignments.float().mean(dim=0)
    each = -torch.xlogy(assignments.float(), assignments.float()).sum(dim=1)
    return PrototypeUse(torch.exp(-torch.xlogy(mean, mean).sum()), each.mean() / math.log(assignments.shape[1]))


def prototype_uses(assignments: Mapping[str, Tensor]) -> dict[str, PrototypeUse]:
    """Return the use of the prototypes of each term, except for terms with too few samples or one prototype."""
    return {
        term: prototype_use(rows)
        for term, rows in assignments.items()
        if len(rows) >= MIN_SAMPLES and rows.shape[1] > 1
    }


@dataclass
class PrototypeWatch:
    """Warns when the prototypes of a term collapse in one of the two ways for `PATIENCE` readings in a row."""

    single: dict[str, int] = field(default_factory=dict)
    uniform: dict[str, int] = field(default_factory=dict)

    def warnings(self, used: Mapping[str, float], entropy: Mapping[str, float], *, share_done: float) -> list[str]:
        """Add a reading and return one warning per term that has just been low for long enough.

        Args:
            used: Effective number of prototypes by term.
            entropy: Entropy of the teacher as a fraction of the maximum, by term.
            share_done: Finished fraction of the run; in the first tenth assignments may still be even.
        """
        sentences = []
        for term in used:
            even = entropy[term] > MAX_ENTROPY and share_done >= WARMING_UP
            self.single[term] = self.single.get(term, 0) + 1 if used[term] < MIN_USED else 0
            self.uniform[term] = self.uniform.get(term, 0) + 1 if even else 0
            if self.single[term] == PATIENCE:
                sentences.append(
                    f"The prototypes of {term} are collapsing: the teacher puts nearly all of a batch on one "
                    f"({used[term]:.2f} in use) for {PATIENCE} readings in a row. Try a smaller centre "
                    "momentum, a higher teacher temperature, a lower learning rate, or a larger batch."
                )
            if self.uniform[term] == PATIENCE:
                sentences.append(
                    f"The prototypes of {term} are collapsing: the teacher spreads every image evenly over all of them "
                    f"(entropy {entropy[term]:.4f} of the maximum) for {PATIENCE} readings in a row. Try a lower "
                    "teacher temperature, fewer prototypes, or a longer warm-up of the learning rate."
                )
        return sentences
