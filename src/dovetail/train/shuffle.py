"""Shuffled BatchNorm: the teacher's images change ranks before its forward pass, and its outputs change back.

Per-rank batch statistics would otherwise tell a key from the negatives (MoCo, arXiv 1911.05722, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dovetail.distributed import gather, rank, world_size
from dovetail.views.view import View


def shuffled_across_ranks(branch: nn.Module, views: Sequence[View]) -> dict[str, list[Any]]:
    """Return `branch(views)` with the images of all ranks permuted before, and the outputs put back after."""
    if world_size() == 1:
        outputs: dict[str, list[Any]] = branch(views)
        return outputs
    batch = views[0].pixels.shape[0]
    order = common_permutation(batch * world_size(), views[0].pixels.device)
    mine = order[rank() * batch : (rank() + 1) * batch]
    moved = [take(view, mine) for view in views]
    back = order.argsort()[rank() * batch : (rank() + 1) * batch]
    restored: dict[str, list[Any]] = pytree.tree_map_only(Tensor, lambda value: gather(value)[back], branch(moved))
    return restored


def common_permutation(count: int, device: torch.device) -> Tensor:
    """Return one random permutation, the same on all ranks."""
    order = torch.randperm(count, device=device)
    dist.broadcast(order, src=0)
    return order


def take(view: View, indices: Tensor) -> View:
    """Return the images `indices` of all ranks' views."""
    moved: dict[str, Any] = {
        name: gather(value)[indices] for name, value in vars(view).items() if isinstance(value, Tensor)
    }
    return replace(view, **moved)
