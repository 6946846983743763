"""torch.compile for networks: the same numbers for every method, and nothing of it is left afterwards."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dovetail.errors import DovetailError
from dovetail.recipes.table import examples
from dovetail.run.pretrain import pretrain
from dovetail.train.compiling import compiled
from dovetail.train.learner import Learner
from dovetail.weights.exported import load
from tests.data.photos import folder_of
from tests.tiny import START, make_views, shallow_learner, tiny_learner


def gradients(learner: Learner, seed: int) -> Tensor:
    torch.manual_seed(seed)
    learner(make_views(learner.recipe.views, seed=seed), START).total.backward()
    return torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])


QUICK = ("decon-ml-simclr", "adclr-ibot")


@pytest.mark.parametrize(
    "method", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in examples()]
)
def test_traced_networks_learn_alike(method: str) -> None:
    """With the tracer alone ("eager"), which is where Python that cannot be compiled would show."""
    plain = shallow_learner(method)
    network = plain.student.network
    plain.student.network = network.following(replace(network.rules, lateral_dropout=None))  # its draws may differ
    other = copy.deepcopy(plain)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with compiled(other, backend="eager"):
        found = gradients(other, 1)
    torch.testing.assert_close(found, gradients(plain, 1), rtol=1e-4, atol=1e-5)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert "forward" not in vars(other.student.network)


def test_it_is_the_compiler_that_runs_in_training_alone() -> None:
    calls: list[int] = []

    def counting(graph: Any, inputs: Any) -> Any:
        calls.append(len(inputs))
        return graph.forward

    learner = tiny_learner("simsiam")
    view = make_views(learner.recipe.views)[0]
    torch._dynamo.reset()
    with compiled(learner, backend=counting):
        learner.student.network.eval()(view, ["c5"])
        assert not calls
        learner.student.network.train()(view, ["c5"])
    assert calls


def test_a_compiler_that_fails_is_a_sentence() -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    learner = tiny_learner("simsiam")
    torch._dynamo.reset()
    with pytest.raises(DovetailError, match="leave out --compile"), compiled(learner, backend=broken):
        learner(make_views(learner.recipe.views), START)
    assert "forward" not in vars(learner.student.network)


@pytest.mark.slow  # half a minute of a C++ compiler
def test_a_run_with_compiled_networks_ends_with_weights_that_load(tmp_path: Path) -> None:
    run = pretrain(
        data=folder_of(tmp_path / "photographs", 8),
        model="timm/test_resnet",
        method="simsiam",
        out=tmp_path / "run",
        batch_size=4,
        image_size=32,
        max_steps=2,
        workers=0,
        report_every_minutes=0,
        compile=True,
        recipe={"hidden": 16, "dim": 8},
    )
    assert run.step == 2
    assert all(torch.isfinite(value).all() for value in load(run.folder).state_dict().values())
