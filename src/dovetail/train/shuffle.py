"""Shuffled BatchNorm: the teacher's images are shuffled over ranks before its forward pass, and outputs shuffled back.

Per-rank batch statistics would otherwise reveal a key among the negatives (MoCo, arXiv 1911.05722, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from dovetail.distributed import gather, rank, world_size
from dovetail.train.batch_norm import JointBatchNorm
from dovetail.views.view import View


def shuffled_across_ranks(branch: nn.Module, views: Sequence[View]) -> dict[str, list[Any]]:
    """Return `branch(views)` with the images of all ranks permuted before and the outputs restored afterwards.

    If no layer has per-rank statistics, the order of images has no effect and they are not moved, because moving them
    is most of the communication of such a step.
    """
    if world_size() == 1 or not any(map(has_own_statistics, branch.modules())):
        outputs: dict[str, list[Any]] = branch(views)
        return outputs
    batch = views[0].pixels.shape[0]
    order = common_permutation(batch * world_size(), views[0].pixels.device)
    mine = order[rank() * batch : (rank() + 1) * batch]
    moved = [take(view, mine) for view in views]
    back = order.argsort()[rank() * batch : (rank() + 1) * batch]
    restored: dict[str, list[Any]] = pytree.tree_map_only(Tensor, lambda value: gather(value)[back], branch(moved))
    return restored


def has_own_statistics(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm with per-rank statistics."""
    return isinstance(module, _BatchNorm) and not isinstance(module, (nn.SyncBatchNorm, JointBatchNorm))


def common_permutation(count: int, device: torch.device) -> Tensor:
    """Return one random permutation, the same on all ranks."""
    order = torch.randperm(count, device=device)
    dist.broadcast(order, src=0)
    return order


def take(view: View, indices: Tensor) -> View:
    """Return the images `indices` of the views of all ranks."""
    return view.mapped(lambda value: gather(value)[indices])
