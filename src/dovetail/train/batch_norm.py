"""BatchNorm over the images of all processes: then the number of processes changes no statistics, and no gradient.

On GPUs these are torch's and timm's layers. torch has none for processors, so that one is here, in two lines of
mathematics: every process gathers all counts, means and variances with their gradient, and puts them together.

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
from dovetail.heads.rows import move_statistics, normalised, statistics

log = logging.getLogger(__name__)


class JointBatchNorm(_BatchNorm):
    """BatchNorm whose batch is that of all processes, on any device; a process may have no row at all."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Take [B, C, ...] of any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Return [B, C, ...] normalised."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        values = at_least_float32(input)
        mean, variance, count = statistics(values)
        move_statistics(self, mean, variance, count)
        return normalised(self, values, mean, variance).to(input.dtype)


class JointBatchNormAct(JointBatchNorm):
    """The same with what timm's `BatchNormAct2d` does after it."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Return [B, C, H, W] normalised, then dropped out and activated."""
        output: Tensor = self.act(self.drop(super().forward(input)))
        return output


@contextmanager
def joint_batch_norm(module: nn.Module, *, on_gpu: bool) -> Iterator[None]:
    """Let every BatchNorm within `module` see the images of all processes; its own layers are back afterwards.

    A layer and the one in its place have the same parameters and buffers, under the same names.
    """
    made: dict[nn.Module, nn.Module | None] = {}
    places: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []
    for parent in list(module.modules()):
        for name, child in parent._modules.items():  # `named_children` names a layer in two places once
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
    """Return the joint layer for a BatchNorm, None for any other layer."""
    if not isinstance(layer, _BatchNorm) or isinstance(layer, (nn.SyncBatchNorm, JointBatchNorm)):
        return None
    kind: type[_BatchNorm]
    if isinstance(layer, BatchNormAct2d):
        kind = SyncBatchNormAct if on_gpu else JointBatchNormAct
    elif type(layer).forward is _BatchNorm.forward:
        kind = nn.SyncBatchNorm if on_gpu else JointBatchNorm
    else:
        log.warning("%s is a BatchNorm of its own kind; every process keeps its own statistics.", type(layer).__name__)
        return None
    joint = kind(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    # The very same dictionaries: moving the joint layer to a device moves the other one too.
    joint._parameters, joint._buffers, joint._modules = layer._parameters, layer._buffers, layer._modules
    return joint.train(layer.training)
