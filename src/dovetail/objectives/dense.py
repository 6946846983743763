"""DenseCL: contrast of whole images and of matched cells against two queues (arXiv 2011.09157).

    loss = (1 - w) NCE(q, k+, queue_global) + w mean_i NCE(r_i, t_m(i), queue_dense)             (equations 1 to 4)
    m(i) = argmax_j cos(f_query,i , f_key,j)   over the cells of the tap itself, not of the head

The loss has one direction, as in the paper: the first view is the student's query and the second the teacher's key. The
dense queue stores one vector per image, the normalised average of the key's dense map.

Differences from the official code: the queue's length does not need to be a multiple of the batch. The option
`num_grid` is not supported, which finds matches on the tap's cells and looks them up on a pooled grid of another size.
With `Cells.grid` the map is pooled before matching and before the head, so the indices refer to the same cells.

DenseCL's dense negatives are averages of other images, so nothing separates the cells of one image. With
`cell_negatives`, each cell is also contrasted with the key's cells of the same image that are far from the cell and
from its match in the source image, as in pixel-level InfoNCE (VADeR, arXiv 2011.05499; PixContrast, arXiv 2011.10043,
section 3.1). Cells without such negatives have DenseCL's loss.

Sampled maps (`Cells.points`) have N cells at points that are uniform in the crop of each view. Queries and keys are
both sampled. The averages over the map (both global embeddings, the dense queue's key) become averages over the points,
which are unbiased estimates before normalisation. Each view has its own points, because DenseCL matches by similarity,
needs no overlap, and averages over whole views.

Shapes: B images, C channels of the tap, D of the embedding, N cells of the query map, M of the key map, K length of
the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dovetail.errors import OptionsError, RecipeError
from dovetail.heads.base import HeadSpec, at_least_float32, full_precision
from dovetail.heads.dense import DenseHeadSpec, DenseOutput
from dovetail.objectives.objective import Loss, Objective, ObjectiveSpec
from dovetail.objectives.pixels import cell_centres
from dovetail.objectives.queue import Queue
from dovetail.schedules import Moment
from dovetail.views.view import View

NONE = -1e30  # logarithm of the sum without negatives; finite, so that its gradient is 0 and not NaN
AT_ONCE = 2**25  # number of similarities in memory at a time: 128 MiB of float32


@dataclass(frozen=True)
class DenseContrastSpec(ObjectiveSpec):
    """DenseCL's loss.

    Attributes:
        temperature: Temperature of both terms.
        queue: Number of vectors in each of the two queues.
        dense_weight: Weight of the dense term in [0, 1]; the global term has the rest.
        similarities_at_once: Maximum number of similarities (to the queue, or between cells) to compute at a time. More
            are computed in blocks, and those to negatives recomputed in the backward pass, with the same result.
        cell_negatives: Minimum distance of cells of the same image to use as negatives, in the source image's [0, 1]
            frame; 0 uses none.

    Example:
        >>> import torch
        >>> from dovetail.heads.dense import DenseHeadSpec
        >>> from dovetail.views.view import View
        >>> spec = DenseHeadSpec(hidden=16, dim=8)
        >>> loss, head = DenseContrastSpec(queue=16).build(spec), spec.build(12)
        >>> one, two = (head(torch.randn(4, 12, 7, 7)) for _ in range(2))  # of the encoder's maps of two views
        >>> total = loss([one, None], [None, two], 2 * [View.of(torch.zeros(4, 3, 56, 56))]).total
    """

    temperature: float = 0.2
    queue: int = 65536
    dense_weight: float = 0.5
    similarities_at_once: int = AT_ONCE
    cell_negatives: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dense_weight <= 1:
            raise OptionsError(f"DenseCL's dense_weight is {self.dense_weight}; it must be between 0 and 1.")
        if self.temperature <= 0:
            raise OptionsError(f"DenseCL's temperature is {self.temperature}; it must be above 0.")
        if self.cell_negatives < 0:
            raise OptionsError(f"DenseCL's cell_negatives is {self.cell_negatives}; it must not be negative.")

    @property
    def one_way(self) -> bool:
        """True: the first view is the query."""
        return True

    @property
    def points(self) -> Literal["view"]:
        """Points in each view's own crop."""
        return "view"

    def build(self, head: HeadSpec) -> DenseContrast:
        if not isinstance(head, DenseHeadSpec):
            raise RecipeError(f"DenseCL's loss compares the output of a DenseHeadSpec; the term has {head}.")
        return DenseContrast(self, head.dim)


class DenseContrast(Objective):
    """DenseCL's loss and its two queues of D x K unit vectors. Parts of the loss: `global`, `dense`."""

    def __init__(self, spec: DenseContrastSpec, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.needs_views = spec.cell_negatives > 0
        self.queue_global = Queue(dim, spec.queue)
        self.queue_dense = Queue(dim, spec.queue)

    def forward(
        self, student: Sequence[DenseOutput], teacher: Sequence[DenseOutput], views: Sequence[View], moment: Moment
    ) -> Loss:
        if len(student) != 2 or len(teacher) != 2:
            raise RecipeError(
                f"DenseCL compares two global views; the student has {len(student)}, the teacher {len(teacher)}."
            )
        query, key, spec = student[0], teacher[1], self.spec
        with full_precision(query.embedding):
            index = correspondences(query.features, key.features, at_once=spec.similarities_at_once)  # [B, N]
            cells = query.cells.flatten(2).transpose(1, 2)  # [B, N, D]
            more = self._own_negatives(query.cells, key.cells, index, views)
            per_image = self._contrast(query.embedding, key.embedding, self.queue_global)
            matches = take_cells(key.cells, index).flatten(0, 1)
            per_cell = self._contrast(cells.flatten(0, 1), matches, self.queue_dense, more)
        total = (1 - spec.dense_weight) * per_image + spec.dense_weight * per_cell
        return Loss(total, {"global": per_image.detach(), "dense": per_cell.detach()})

    def _contrast(self, query: Tensor, positive: Tensor, queue: Queue, more: Tensor | None = None) -> Tensor:
        spec = self.spec
        return info_nce(
            *(query, positive.detach(), queue.negatives(), more),
            temperature=spec.temperature,
            at_once=spec.similarities_at_once,
        )

    def _own_negatives(self, query: Tensor, key: Tensor, index: Tensor, views: Sequence[View]) -> Tensor | None:
        """Return `own_image_negatives` [B N] for maps [B, D, H, W] and matches [B, N]; None if disabled."""
        spec = self.spec
        if not spec.cell_negatives:
            return None
        return own_image_negatives(
            *(query.flatten(2).transpose(1, 2), key.detach().flatten(2), index),
            *(cell_centres(views[0], query).xy, cell_centres(views[1], key).xy),
            distance=spec.cell_negatives,
            temperature=spec.temperature,
            at_once=spec.similarities_at_once,
        ).flatten()

    @torch.no_grad()
    def update(self, student: Sequence[DenseOutput], teacher: Sequence[DenseOutput]) -> None:
        """Add the keys of all ranks to the queues."""
        self.queue_global.push(teacher[1].embedding)
        self.queue_dense.push(teacher[1].pooled)


@torch.no_grad()
def correspondences(query: Tensor, key: Tensor, *, at_once: int = AT_ONCE) -> Tensor:
    """Return [B, N]: for each cell of `query` [B, C, H, W] the flat index of the most similar cell of `key`.

    Similarity is the cosine; ties use the first cell. About `at_once` similarities are in memory at a time.
    """
    with full_precision(query):
        queries = F.normalize(at_least_float32(query).flatten(2), dim=1).transpose(1, 2)  # [B, N, C]
        keys = F.normalize(at_least_float32(key).flatten(2), dim=1)  # [B, C, M]
        rows = max(1, at_once // (keys.shape[0] * keys.shape[2]))
        return torch.cat([(part @ keys).argmax(dim=2) for part in torch.split(queries, rows, dim=1)], dim=1)


def take_cells(cells: Tensor, index: Tensor) -> Tensor:
    """Return [B, N, D]: the cells of a map [B, D, H, W] at flat indices [B, N]."""
    flat = cells.flatten(2).transpose(1, 2)  # [B, M, D]
    return flat.gather(1, index[:, :, None].expand(-1, -1, flat.shape[2]))


def own_image_negatives(
    query: Tensor,
    keys: Tensor,
    index: Tensor,
    centres: Tensor,
    others: Tensor,
    *,
    distance: float,
    temperature: float,
    at_once: int,
) -> Tensor:
    """Return [B, N]: log sum_j exp(q.k_j / T) over distant cells of the same image; `NONE` without any.

    Distant cells are at least `distance` away in the source image, both from the query's cell and from its match. The
    match may be elsewhere if two objects are similar.

    Args:
        query: [B, N, D] unit rows.
        keys: [B, D, M] unit columns, without gradient.
        index: [B, N], index of each query's match among the M cells.
        centres: [B, N, 2], centres of the query's cells, x and y in [0, 1] of the source image.
        others: [B, M, 2], centres of the key's cells in the same frame.
        distance: Minimum distance in the same frame.
        temperature: Temperature T.
        at_once: Maximum number of similarities in memory; with more, blocks of rows are recomputed in the backward
            pass.
    """
    matched = others.gather(1, index[:, :, None].expand(-1, -1, 2))
    rows = max(1, at_once // (keys.shape[0] * keys.shape[2]))

    def block(query: Tensor, first: int) -> Tensor:
        part = slice(first, first + query.shape[1])
        close = within(centres[:, part], others, distance) | within(matched[:, part], others, distance)  # [B, R, M]
        return torch.logsumexp((query @ keys / temperature).masked_fill(close, NONE), dim=2)

    if query.shape[1] <= rows:
        return block(query, 0)
    blocks = [
        checkpoint(block, part, number * rows, use_reentrant=False, preserve_rng_state=False)
        for number, part in enumerate(torch.split(query, rows, dim=1))
    ]
    return torch.cat(blocks, dim=1)


def within(places: Tensor, others: Tensor, distance: float) -> Tensor:
    """Return [B, R, M] bool: which of `others` [B, M, 2] are closer than `distance` to each of `places` [B, R, 2]."""
    return torch.cdist(places, others, compute_mode="donot_use_mm_for_euclid_dist") < distance


def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor,
    more: Tensor | None = None,
    *,
    temperature: float,
    at_once: int,
) -> Tensor:
    """Return the mean over rows of -log(exp(q.k+ / T) / (exp(q.k+ / T) + sum_j exp(q.n_j / T))).

    Args:
        query: [R, D] unit rows.
        positive: [R, D] unit rows.
        negatives: [D, K] unit columns.
        more: [R], logarithm of the sum over additional negatives of each row; None without them.
        temperature: Temperature T.
        at_once: Maximum number of logits in memory; with more, blocks of rows are recomputed in the backward pass.
    """
    rows = max(1, at_once // negatives.shape[1])
    if len(query) <= rows:
        return _info_nce_rows(query, positive, negatives, more, temperature).mean()
    parts = torch.split(query, rows)
    mores = [None] * len(parts) if more is None else torch.split(more, rows)
    blocks = [
        checkpoint(_info_nce_rows, q, p, negatives, m, temperature, use_reentrant=False, preserve_rng_state=False)
        for q, p, m in zip(parts, torch.split(positive, rows), mores, strict=True)
    ]
    return torch.cat(blocks).mean()


def _info_nce_rows(
    query: Tensor, positive: Tensor, negatives: Tensor, more: Tensor | None, temperature: float
) -> Tensor:
    """Return [R]: the loss of each row."""
    query = query / temperature
    right = (query * positive).sum(dim=1)
    # Not concatenated with the negatives, which would store all logits twice.
    every = torch.logaddexp(right, torch.logsumexp(query @ negatives, dim=1))
    return (every if more is None else torch.logaddexp(every, more)) - right
