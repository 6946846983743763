"""Synchronised BatchNorm over the images of all processes, with statistics and gradients for any number of processes.

On GPUs this uses the layers of torch and timm. torch has no such layer for CPUs, so this file implements one: every
process gathers and combines all counts, means and variances with their gradients.

Shapes: B images of this process, C channels, ... positions; R processes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dovetail.distributed import world_size
from dovetail.heads.base import at_least_float32
from dovetail.heads.masked_mlp import move_statistics, normalised, statistics

log = logging.getLogger(__name__)


class JointBatchNorm(_BatchNorm):
    """BatchNorm over the batch of all processes, on any device; a process may have no rows."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept [B, C, ...] with any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Return [B, C, ...] normalised."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        values = at_least_float32(input)
        mean, variance, count = statistics(values)
        move_statistics(self, mean, variance, count)
        return normalised(self, values, mean, variance).to(input.dtype)


class JointBatchNormAct(JointBatchNorm):
    """`JointBatchNorm` with the dropout and activation of timm's `BatchNormAct2d`."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Return [B, C, H, W] after normalisation, dropout and activation."""
        output: Tensor = self.act(self.drop(super().forward(input)))
        return output


@contextmanager
def joint_batch_norm(module: nn.Module, *, on_gpu: bool) -> Iterator[None]:
    """Synchronise every BatchNorm in `module` over all processes; restores the original layers afterwards.

    A replaced layer has the same parameters and buffers under the same names.
    """
    made: dict[nn.Module, nn.Module | None] = {}
    places: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []
    for parent in list(module.modules()):
        for name, child in parent._modules.items():  # `named_children` lists a shared layer only once
            if child is None:
                continue
            if child not in made:
                made[child] = joint_layer(child, on_gpu=on_gpu)
            other = made[child]
            if other is not None:
                places.append((parent, name, child, other))
    for parent, name, _, other in places:
        setattr(parent, name, other)
    try:
        yield
    finally:
        for parent, name, child, other in places:
            setattr(parent, name, child.train(other.training))


def joint_layer(layer: nn.Module, *, on_gpu: bool) -> nn.Module | None:
    """Return the synchronised layer for a BatchNorm, None for any other layer."""
    if not isinstance(layer, _BatchNorm) or isinstance(layer, (nn.SyncBatchNorm, JointBatchNorm)):
        return None
    kind: type[_BatchNorm]
    if isinstance(layer, BatchNormAct2d):
        kind = SyncBatchNormAct if on_gpu else JointBatchNormAct
    elif type(layer).forward is _BatchNorm.forward:
        kind = nn.SyncBatchNorm if on_gpu else JointBatchNorm
    else:
        log.warning("%s is not synchronised; every process keeps its own statistics.", type(layer).__name__)
        return None
    joint = kind(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    # Share the dictionaries: moving the synchronised layer to a device then moves the original one too.
    joint._parameters, joint._buffers, joint._modules = layer._parameters, layer._buffers, layer._modules
    return joint.train(layer.training)
