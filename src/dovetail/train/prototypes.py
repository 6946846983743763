"""How a teacher uses its prototypes: how many, and how surely. Both ways to collapse show here.

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
    """The effective number of prototypes in use, and the mean entropy as a share of log K: scalars on the device."""

    used: Tensor
    entropy: Tensor


@torch.no_grad()
def prototype_use(assignments: Tensor) -> PrototypeUse:
    """Return what a sample of assignments says.

    `used` is the perplexity of the mean assignment: 1 where one prototype takes every sample, K where all are used
    alike. `entropy` is 1 where every sample is spread evenly over all prototypes, which teaches nothing. DINO
    (arXiv 2104.14294, section 5.3) tells its two kinds of collapse apart so.

    Args:
        assignments: [N, K] float, rows that sum to 1.
    """
    mean = assignments.float().mean(dim=0)
    each = -torch.xlogy(assignments.float(), assignments.float()).sum(dim=1)
    return PrototypeUse(torch.exp(-torch.xlogy(mean, mean).sum()), each.mean() / math.log(assignments.shape[1]))


def prototype_uses(assignments: Mapping[str, Tensor]) -> dict[str, PrototypeUse]:
    """Return the use of each term's prototypes; left out where samples are too few, or there is one prototype."""
    return {
        term: prototype_use(rows)
        for term, rows in assignments.items()
        if len(rows) >= MIN_SAMPLES and rows.shape[1] > 1
    }


@dataclass
class PrototypeWatch:
    """Says in words when a term's prototypes collapse, for `PATIENCE` readings on end, in one of the two ways."""

    single: dict[str, int] = field(default_factory=dict)
    uniform: dict[str, int] = field(default_factory=dict)

    def warnings(self, used: Mapping[str, float], entropy: Mapping[str, float], *, share_done: float) -> list[str]:
        """Count one reading and return a sentence for each term that has just been low for long enough.

        Args:
            used: Effective number of prototypes, by term.
            entropy: Of the teacher as a share of the largest one, by term.
            share_done: Of the run; in its first tenth assignments may still be even.
        """
        sentences = []
        for term in used:
            even = entropy[term] > MAX_ENTROPY and share_done >= WARMING_UP
            self.single[term] = self.single.get(term, 0) + 1 if used[term] < MIN_USED else 0
            self.uniform[term] = self.uniform.get(term, 0) + 1 if even else 0
            if self.single[term] == PATIENCE:
                sentences.append(
                    f"The prototypes of {term} are collapsing: the teacher puts nearly all of a batch on one "
                    f"({used[term]:.2f} in use) in {PATIENCE} readings on end. What usually helps: a smaller centre "
                    "momentum, a higher teacher temperature, a lower learning rate, or a larger batch."
                )
            if self.uniform[term] == PATIENCE:
                sentences.append(
                    f"The prototypes of {term} are collapsing: the teacher spreads every image evenly over all of them "
                    f"(entropy {entropy[term]:.4f} of the largest) in {PATIENCE} readings on end. What usually helps: "
                    "a lower teacher temperature, fewer prototypes, or a longer warm-up of the learning rate."
                )
        return sentences
