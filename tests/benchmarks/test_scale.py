"""The cost model: its constants are the learner's, its terms grow as they should, its table is the one that is kept."""

from __future__ import annotations

import math

import pytest
from benchmarks.scale import __main__ as scale
from benchmarks.scale.count import COUNTED
from benchmarks.scale.measure import measure
from benchmarks.scale.memory import used
from benchmarks.scale.model import Cost, Machine

from dovetail.recipes.table import METHODS

MACHINE = Machine(flops=1e12, link=1e9, latency=1e-5, cores=2, loaded=100.0, memory=1e9)
TINY = {"image_size": 64, "hidden": 32, "dim": 16}


def test_constants_are_what_a_step_does() -> None:
    two, four = (measure("barlow", "timm/test_resnet", batch, **TINY) for batch in (2, 4))
    assert two.followed == 0
    assert two.gathered_bytes == two.returned_bytes == 2 * 2 * 16 * 4  # two views of two images, sixteen numbers
    assert four.gathered_bytes == 2 * two.gathered_bytes
    assert 1.9 < four.flops / two.flops <= 2
    assert two.norms > 0
    assert two.teacher_norms == 0
    queued = measure("densecl", "timm/test_resnet", 2, **TINY, queue=16)
    assert queued.gathered_bytes == 2 * 2 * 16 * 4  # one key an image for each of two queues
    assert queued.trained == queued.followed
    slots = measure("slotcon", "timm/test_resnet", 2, **TINY, prototypes=8)
    assert 0 < slots.gathered_bytes <= 2 * 2 * 8 * 16 * 4 + 1000  # at most all prototypes, both ways, and counts


def cost() -> Cost:
    return Cost("simclr", (1e9, 2e9), (1e6, 2e6), 10**6, 10**6, 0, (0.0, 1e3), 0.0, (0.0, 1e3), 50, 50)


def test_a_line_goes_through_both_batches() -> None:
    entry = {
        **dict.fromkeys(("trained", "followed", "state_bytes", "reduced_bytes", "norms", "teacher_norms"), 7),
        **dict.fromkeys(("gathered_bytes", "returned_bytes"), 0),
    }
    fitted = Cost.fitted("simclr", [entry | {"batch": batch, "flops": 5 + 3 * batch, "activation_bytes": 2 * batch}
                                    for batch in (2, 3)])  # fmt: skip
    assert (fitted.flops, fitted.activations) == ((5, 3), (0, 2))


def test_terms_grow_as_they_should() -> None:
    alone, two, many = (cost().terms(MACHINE, 8, world) for world in (1, 2, 64))
    assert alone["gradients"] == alone["gathers"] == alone["norms"] == 0
    assert two["gradients"] == pytest.approx(4e6 / 1e9)
    assert many["gradients"] == pytest.approx(2 * 63 / 64 * 4e6 / 1e9)
    assert many["norms"] == pytest.approx(6 * two["norms"])
    assert many["together"] == pytest.approx(64 * alone["together"])
    assert many["compute"] == alone["compute"] == pytest.approx(17e9 / 1e12)
    assert many["loading"] == pytest.approx(8 / 200)
    assert cost().memory(8) - cost().memory(7) == pytest.approx(2e6)
    seconds = [cost().seconds(MACHINE, 64, 2**power) for power in range(8)]
    assert seconds == sorted(seconds)


def test_what_breaks_first_is_what_is_made_dear() -> None:
    slow_link = Machine(1e12, 1e5, 0.0, 1000, 1000.0, 1e9)
    assert cost().breaks_first(slow_link, 8)[0] in ("gradients", "gathers")
    assert cost().breaks_first(Machine(1e12, math.inf, 1.0, 1000, 1000.0, 1e9), 8) == ("norms", 2)
    assert cost().breaks_first(Machine(1e12, math.inf, 0.0, 1, 1.0, 1e9), 8) == ("loading", 1)


def test_every_method_is_counted_and_the_table_is_up_to_date() -> None:
    assert {one.method for one in scale.costs()} == set(COUNTED) >= set(METHODS)
    assert scale.TABLE.read_text() == scale.page(), "run `python -m benchmarks.scale`"


@pytest.mark.slow
def test_memory_does_not_grow() -> None:
    assert used(10**7) - used(10**3) < 2e6
