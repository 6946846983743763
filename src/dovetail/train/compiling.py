"""torch.compile for the networks of a run, as an option.

Views, heads, losses and the optimiser stay as they are: their shapes and Python change from recipe to recipe. The first
step waits for the compiler: a minute or two of a processor core. On a processor it gains little or nothing
(benchmarks/results/speed_compile.md); on a GPU it has not been measured.
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
    """Let `torch.compile` run the networks of both branches in training; they are as they were afterwards.

    Weights, their names and hooks stay as they are. A network is compiled once for each size and kind of view, student
    and teacher apart. Numbers differ from uncompiled ones by rounding, and where a network drops out by other draws.

    Args:
        learner: Whole, not cut over processes.
        backend: torch.compile's.

    Raises:
        ModelError: Where the compiler fails, which it does in the first step.
    """
    networks = [branch.network for branch in (learner.student, learner.teacher) if branch is not None]
    for network in networks:
        network.forward = in_training(network, backend)  # type: ignore[method-assign]
    try:
        yield
    except torch._dynamo.exc.BackendCompilerFailed as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"The network cannot be compiled here ({first}); leave out --compile.") from error
    finally:
        for network in networks:
            del network.forward  # the instance's; the class's is behind it


def in_training(network: Network, backend: str | Callable[..., Any]) -> Callable[..., dict[str, Tensor]]:
    """Return a network's forward pass, compiled where it trains: pictures and monitors look at it in evaluation."""
    plain = network.forward
    fast = torch.compile(plain, backend=backend, dynamic=False)

    def forward(view: View, taps: Collection[str]) -> dict[str, Tensor]:
        answer: dict[str, Tensor] = (fast if network.training else plain)(view, taps)
        return answer

    return forward
