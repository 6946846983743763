"""Optional torch.compile for the networks of a run.

Views, heads, losses and the optimiser are not compiled, because their shapes and Python code depend on the recipe. The
first step takes a minute or two longer on one CPU core. On a CPU the gain is little or nothing
(benchmarks/results/speed_compile.md). It has not been measured on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dovetail.errors import ModelError
from dovetail.networks.network import Network
from dovetail.train.learner import Learner
from dovetail.views.view import View


@contextmanager
def compiled(learner: Learner, *, backend: str | Callable[..., Any] = "inductor") -> Iterator[None]:
    """Compile the networks of both branches for training; restores them afterwards.

    Weights, their names and hooks do not change. A network is compiled once for each size and kind of view, separately
    for student and teacher. Results differ by rounding, and by the random draws of dropout.

    Args:
        learner: Learner without sharded weights.
        backend: Backend of `torch.compile`.

    Raises:
        ModelError: If the compiler fails, in the first step.
    """
    networks = [branch.network for branch in (learner.student, learner.teacher) if branch is not None]
    for network in networks:
        network.forward = in_training(network, backend)  # type: ignore[method-assign]
    try:
        yield
    except torch._dynamo.exc.BackendCompilerFailed as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"The network cannot be compiled ({first}); leave out --compile.") from error
    finally:
        for network in networks:
            del network.forward  # removes the instance attribute that hides the method


def in_training(network: Network, backend: str | Callable[..., Any]) -> Callable[..., dict[str, Tensor]]:
    """Return a forward pass that is compiled only in training mode; pictures and monitors use evaluation mode."""
    plain = network.forward
    fast = torch.compile(plain, backend=backend, dynamic=False)

    def forward(view: View, taps: Collection[str]) -> dict[str, Tensor]:
        answer: dict[str, Tensor] = (fast if network.training else plain)(view, taps)
        return answer

    return forward
