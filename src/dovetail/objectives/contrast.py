"""Contrast: NT-Xent (SimCLR), InfoNCE against a teacher's keys in the batch (MoCo v3) or in a queue (MoCo v2).

SimCLR, arXiv 2002.05709, equation 1; MoCo, arXiv 1911.05722, equation 1, and v2, arXiv 2003.04297; MoCo v3,
arXiv 2104.02057, equation 1 and algorithm 1.

Memory: the similarities of A anchors to N candidates are computed in blocks of `rows_per_block` anchors and recomputed
in the backward pass, so no [A, N] matrix is stored. Values and gradients do not change; the cost is one more matrix
product. Under autocast all operations run in float32.

Shapes: B images of this rank, N candidates, V views, D channels, A anchors, P positives of an anchor, K length of the
queue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dovetail.distributed import gather, gather_with_gradient, rank
from dovetail.errors import OptionsError
from dovetail.heads.base import HeadSpec, full_precision
from dovetail.objectives.objective import Loss, Objective, ObjectiveSpec
from dovetail.objectives.queue import Queue
from dovetail.objectives.vector import (
    PredictorSpec,
    crossed_pairs,
    require_teacher,
    require_views,
    unit,
    vector_dim,
)
from dovetail.schedules import Moment
from dovetail.views.view import View

Positives = Literal["inside", "outside"]
ROWS_PER_BLOCK = 1024


@dataclass(frozen=True)
class NTXentSpec(ObjectiveSpec):
    """SimCLR's loss. Every view of every image is an anchor; all other views on all ranks are candidates.

    Attributes:
        temperature: Temperature of the softmax, above 0.
        positives: With more than two views, sum an anchor's positives "inside" the logarithm (solo-learn), or average
            the losses of single positives, "outside" (SupCon's L_out). Both are equal for two views.
        rows_per_block: Number of anchors per block, recomputed in the backward pass; None keeps the whole matrix.

    Example:
        >>> import torch
        >>> from dovetail.heads.vector import VectorHeadSpec
        >>> loss = NTXentSpec().build(VectorHeadSpec(dim=8))
        >>> same, other = torch.eye(4, 8), torch.eye(4, 8).roll(1, dims=0)
        >>> bool(loss([same, same]).total < loss([same, other]).total)  # two views of four images
        True
    """

    temperature: float = 0.1
    positives: Positives = "inside"
    rows_per_block: int | None = ROWS_PER_BLOCK

    def __post_init__(self) -> None:
        check_numbers("nt-xent", self.temperature, self.rows_per_block)

    def build(self, head: HeadSpec) -> NTXent:
        """Return the objective for a head that outputs vectors."""
        vector_dim(head, "nt-xent")
        return NTXent(self)


class NTXent(Objective):
    """Mean over anchors of -log(exp(s+ / T) / sum over the others of exp(s / T)), s the cosine. Part: `contrast`.

    On several ranks, each rank averages over its own anchors with the gathered candidates, whose gradients flow back to
    their ranks. The mean over ranks equals the loss of the whole batch, and so does its gradient.
    """

    def __init__(self, spec: NTXentSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], views: Sequence[View], moment: Moment
    ) -> Loss:
        require_views(student, "nt-xent")
        spec, count, batch = self.spec, len(student), len(student[0])
        with full_precision(student[0]):
            own = unit(torch.stack(tuple(student)))  # [V, B, D]
            everyone = gather_with_gradient(own.transpose(0, 1).contiguous()).transpose(0, 1)  # [V, ranks * B, D]
            # Column of each anchor of this rank among the candidates, for each view.
            columns = torch.arange(batch, device=own.device) + rank() * batch
            columns = columns + everyone.shape[1] * torch.arange(count, device=own.device)[:, None]  # [V, B]
            others = [torch.stack([columns[v] for v in range(count) if v != u], dim=1) for u in range(count)]
            loss = contrast(
                own.flatten(0, 1),
                everyone.flatten(0, 1),
                torch.cat(others),
                columns.flatten(),
                temperature=spec.temperature,
                positives_inside=spec.positives == "inside",
                rows_per_block=spec.rows_per_block,
            )
        return Loss(loss, {"contrast": loss.detach()})


@dataclass(frozen=True)
class KeyContrastSpec(ObjectiveSpec):
    """MoCo v3's loss: a predictor's queries against the teacher's keys of the same batch.

    Attributes:
        temperature: Temperature T, above 0.
        predictor: Predictor of the student; None compares the heads' outputs directly.
        rows_per_block: Number of queries per block, recomputed in the backward pass; None keeps the whole matrix.

    Example:
        >>> import torch
        >>> from dovetail.heads.vector import VectorHeadSpec
        >>> loss = KeyContrastSpec(predictor=None).build(VectorHeadSpec(dim=8))
        >>> same, other = torch.eye(4, 8), torch.eye(4, 8).roll(1, dims=0)
        >>> bool(loss([same, same], [same, same]).total < loss([same, same], [other, other]).total)
        True
    """

    temperature: float = 0.2
    predictor: PredictorSpec | None = field(default_factory=lambda: PredictorSpec(bias=False))
    rows_per_block: int | None = ROWS_PER_BLOCK

    def __post_init__(self) -> None:
        check_numbers("key contrast", self.temperature, self.rows_per_block)

    def build(self, head: HeadSpec) -> KeyContrast:
        """Return the objective for a head that outputs vectors."""
        return KeyContrast(self, vector_dim(head, "key contrast"))


class KeyContrast(Objective):
    """Sum over pairs of different views of 2 T CE(cos(query_i, key_j) / T, i), keys of all ranks without gradient.

    The factor 2 T and the sum over both directions come from MoCo v3's algorithm 1; plain InfoNCE has no factor.
    Parts: `queryA_keyB`, one per pair, including the factor.
    """

    def __init__(self, spec: KeyContrastSpec, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.predictor: nn.Module = nn.Identity() if spec.predictor is None else spec.predictor.build(dim)

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], views: Sequence[View], moment: Moment
    ) -> Loss:
        require_views(student, "key contrast")
        require_teacher(teacher, "key contrast")
        queries = [self.predictor(projection) for projection in student]
        with full_precision(queries[0]):
            keys = [gather(unit(key.detach())) for key in teacher]
            terms = {
                f"query{view}_key{target}": self.term(queries[view], keys[target])
                for target, view in crossed_pairs(len(teacher), len(student))
            }
            total = torch.stack(list(terms.values())).sum()
        return Loss(total, {name: term.detach() for name, term in terms.items()})

    def term(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return 2 T times the InfoNCE of queries [B, D] against unit keys [ranks * B, D]."""
        own = torch.arange(len(queries), device=queries.device) + rank() * len(queries)
        loss = contrast(
            unit(queries),
            keys,
            own[:, None],
            temperature=self.spec.temperature,
            rows_per_block=self.spec.rows_per_block,
        )
        return 2 * self.spec.temperature * loss


@dataclass(frozen=True)
class QueueContrastSpec(ObjectiveSpec):
    """MoCo v2's loss: queries against the teacher's key of the other view and a queue of earlier keys.

    Attributes:
        temperature: Temperature of the softmax, above 0.
        queue: Number of keys in the queue, K.
        symmetric: Average both directions, with a queue for each (solo-learn), instead of only using the first view as
            query and the second as key (the paper).
        rows_per_block: Number of queries per block, recomputed in the backward pass; None keeps the whole matrix.
        reference_dropped_surplus: Drop the keys of a batch beyond the end of the queue, as in lightly.

    Example:
        >>> import torch
        >>> from dovetail.heads.vector import VectorHeadSpec
        >>> loss = QueueContrastSpec(queue=16).build(VectorHeadSpec(dim=8))
        >>> student, teacher = [torch.randn(4, 8), None], [None, torch.randn(4, 8)]
        >>> total = loss(student, teacher).total
        >>> loss.update(student, teacher)  # after the backward pass: adds the keys to the queue
    """

    temperature: float = 0.2
    queue: int = 65536
    symmetric: bool = False
    rows_per_block: int | None = ROWS_PER_BLOCK
    reference_dropped_surplus: bool = False

    def __post_init__(self) -> None:
        check_numbers("queue contrast", self.temperature, self.rows_per_block)

    @property
    def one_way(self) -> bool:
        """Whether the first view is the only query."""
        return not self.symmetric

    def build(self, head: HeadSpec) -> QueueContrast:
        """Return the objective for a head that outputs vectors."""
        return QueueContrast(self, vector_dim(head, "queue contrast"))


class QueueContrast(Objective):
    """Mean over queries of -log(exp(q.k+ / T) / (exp(q.k+ / T) + sum over the queue of exp(q.n / T))).

    `queues` contains the keys of the second view; if symmetric, `queues[v]` contains those of view v. Part: `contrast`.
    """

    def __init__(self, spec: QueueContrastSpec, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.queues = nn.ModuleList(
            Queue(dim, spec.queue, reference_dropped_surplus=spec.reference_dropped_surplus)
            for _ in range(2 if spec.symmetric else 1)
        )

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], views: Sequence[View], moment: Moment
    ) -> Loss:
        require_views(student, "queue contrast")
        require_teacher(teacher, "queue contrast")
        with full_precision(student[0]):
            terms = [
                queue_info_nce(
                    unit(student[1 - key_view]),
                    unit(teacher[key_view].detach()),
                    queue.negatives(),
                    temperature=self.spec.temperature,
                    rows_per_block=self.spec.rows_per_block,
                )
                for key_view, queue in self.queue_of_view()
            ]
            loss = torch.stack(terms).mean()
        return Loss(loss, {"contrast": loss.detach()})

    def queue_of_view(self) -> list[tuple[int, Queue]]:
        """Return pairs of a view and the queue of its keys."""
        queues: list[Queue] = list(self.queues)  # type: ignore[arg-type]
        return list(enumerate(queues)) if self.spec.symmetric else [(1, queues[0])]

    @torch.no_grad()
    def update(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        """Add the keys of all ranks to the queues."""
        for view, queue in self.queue_of_view():
            queue.push(unit(teacher[view]))


def contrast(
    anchors: Tensor,
    candidates: Tensor,
    positives: Tensor,
    excluded: Tensor | None = None,
    *,
    temperature: float,
    positives_inside: bool = True,
    rows_per_block: int | None = ROWS_PER_BLOCK,
) -> Tensor:
    """Return the mean over anchors of -log(sum over positives / sum over candidates) of exp(similarity / temperature).

    Args:
        anchors: [A, D], usually of length one.
        candidates: [N, D], positives included.
        positives: [A, P] long, indices of each anchor's positives among the candidates.
        excluded: [A] long, index of the candidate to exclude for each anchor (itself); None excludes none.
        temperature: Temperature of the softmax, above 0.
        positives_inside: Sum the positives inside the logarithm instead of averaging their losses.
        rows_per_block: Number of anchors per block, recomputed in the backward pass; None keeps the whole matrix.
    """

    def sum_of(rows: slice, anchors: Tensor, candidates: Tensor) -> Tensor:
        logits = (anchors[rows] / temperature) @ candidates.T  # [rows, N], the only matrix of this size
        if excluded is not None:
            logits = logits.scatter_(1, excluded[rows, None], -torch.inf)
        right = logits.gather(1, positives[rows])  # [rows, P]
        best = torch.logsumexp(right, dim=1) if positives_inside else right.mean(dim=1)
        return (torch.logsumexp(logits, dim=1) - best).sum()

    return mean_in_blocks(sum_of, anchors, candidates, rows_per_block=rows_per_block)


def queue_info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor,
    *,
    temperature: float,
    rows_per_block: int | None = ROWS_PER_BLOCK,
) -> Tensor:
    """Return the mean InfoNCE of queries [B, D] against their own key [B, D] and shared negatives [D, K]."""

    def sum_of(rows: slice, query: Tensor, negatives: Tensor) -> Tensor:
        asked = query[rows] / temperature
        right = (asked * key[rows]).sum(dim=1)  # [rows]
        wrong = torch.logsumexp(asked @ negatives, dim=1)  # [rows]
        return (torch.logaddexp(right, wrong) - right).sum()

    return mean_in_blocks(sum_of, query, negatives, rows_per_block=rows_per_block)


def mean_in_blocks(
    sum_of: Callable[[slice, Tensor, Tensor], Tensor], rows: Tensor, others: Tensor, *, rows_per_block: int | None
) -> Tensor:
    """Return the mean over `rows` of a loss whose sum over a slice of them is `sum_of(slice, rows, others)`."""
    if rows_per_block is None or len(rows) <= rows_per_block:
        return sum_of(slice(None), rows, others) / len(rows)
    total = rows.new_zeros(())
    for start in range(0, len(rows), rows_per_block):
        block = slice(start, start + rows_per_block)
        part = checkpoint(sum_of, block, rows, others, use_reentrant=False, preserve_rng_state=False)
        total = total + part
    return total / len(rows)


def check_numbers(objective: str, temperature: float, rows_per_block: int | None) -> None:
    """Raise `OptionsError` for an invalid temperature or block size."""
    if not temperature > 0:
        raise OptionsError(f"The temperature of objective {objective!r} is {temperature:g}; it must be above 0.")
    if rows_per_block is not None and rows_per_block < 1:
        raise OptionsError(
            f"rows_per_block of objective {objective!r} is {rows_per_block}; it must be at least 1 or None."
        )
