"""Trial runs that do not change a module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    pass


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Restore buffers (BatchNorm statistics), training modes and random state afterwards."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    modes = [(part, part.training) for part in module.modules()]
    devices = {tensor.device.index or 0 for tensor in module.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    buffer.copy_(buffers[name])
            for part, training in modes:
                part.training = training
