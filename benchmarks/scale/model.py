"""The cost model: seconds, memory and traffic of one step from a method's counted constants and a machine's numbers.

b images on each of W devices; all bytes and operations are those of one device and one step.

    compute    (phi0 + phi b) / F                              student and teacher, forward and backward
    together   g(b, W) / F                                     what grows with the whole batch: pairs, correlations
    gradients  2 (W - 1) / W  4 P / L                          ring all-reduce in float32, behind two thirds of compute
    gathers    ((W - 1) (a0 + a b) + 2 (W - 1) (r / W + q0 + q b)) / L     rows of all, and their gradients back
    norms      (2 N + M) lambda log2 W                         BatchNorm of all devices: short messages
    loading    b / (cores d)                                   decoding and cropping, beside all else

    step = max(loading, compute + together + gathers + norms + max(gradients - 2/3 compute, 0))
    memory = 16 P + 4 Q + state + (m0 + m b)                   weights, gradients, two moments; teacher; activations
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

TERMS = ("compute", "together", "gradients", "gathers", "norms", "loading")


@dataclass(frozen=True)
class Machine:
    """Numbers of a device and its share of the network and of the processors; assumptions, where they are not measured.

    Attributes:
        flops: Operations a second that training sustains.
        link: Bytes a second that a device sends to others.
        latency: Seconds of one short collective between two devices.
        cores: Processor cores for loading, for each device.
        loaded: Photographs a second that a core decodes and crops.
        memory: Bytes of the device.
    """

    flops: float
    link: float
    latency: float
    cores: int
    loaded: float
    memory: float


def method_of(row: str) -> str:
    """Return the method of a row "METHOD" or "METHOD, what is not as published"."""
    return row.partition(",")[0]


@dataclass(frozen=True)
class Cost:
    """A method's constants: what is there anyway, and what each image adds."""

    method: str
    flops: tuple[float, float]
    activations: tuple[float, float]
    trained: int
    followed: int
    state: int
    gathered: tuple[float, float]
    reduced: float
    returned: tuple[float, float]
    norms: int
    teacher_norms: int

    @classmethod
    def fitted(cls, method: str, constants: list[Mapping[str, Any]]) -> Cost:
        """Return the constants from those counted at two batches."""
        less, more = sorted(constants, key=lambda one: one["batch"])
        step = more["batch"] - less["batch"]

        def line(name: str) -> tuple[float, float]:
            slope = (more[name] - less[name]) / step
            return less[name] - slope * less["batch"], slope

        return cls(
            method,
            line("flops"),
            line("activation_bytes"),
            less["trained"],
            less["followed"],
            less["state_bytes"],
            line("gathered_bytes"),
            less["reduced_bytes"],
            line("returned_bytes"),
            less["norms"],
            less["teacher_norms"],
        )

    def traffic(self, batch: int, world: int) -> dict[str, float]:
        """Return the bytes that a device sends in a step, by term."""
        if world == 1:
            return {"gradients": 0.0, "gathers": 0.0}
        ring = 2 * (world - 1) / world
        rows = (world - 1) * (self.gathered[0] + self.gathered[1] * batch)
        back = ring * (self.reduced + world * (self.returned[0] + self.returned[1] * batch))
        return {"gradients": ring * 4 * self.trained, "gathers": rows + back}

    def terms(self, machine: Machine, batch: int, world: int) -> dict[str, float]:
        """Return the seconds of each term of a step."""
        traffic = self.traffic(batch, world)
        return {
            "compute": (self.flops[0] + self.flops[1] * batch) / machine.flops,
            "together": TOGETHER.get(self.method, nothing)(batch, world) / machine.flops,
            "gradients": traffic["gradients"] / machine.link,
            "gathers": traffic["gathers"] / machine.link,
            "norms": (2 * self.norms + self.teacher_norms) * machine.latency * math.log2(world),
            "loading": batch / (machine.cores * machine.loaded),
        }

    def seconds(self, machine: Machine, batch: int, world: int) -> float:
        """Return the seconds of a step."""
        terms = self.terms(machine, batch, world)
        exposed = max(terms["gradients"] - 2 / 3 * terms["compute"], 0.0)
        busy = terms["compute"] + terms["together"] + terms["gathers"] + terms["norms"] + exposed
        return max(terms["loading"], busy)

    def memory(self, batch: int, *, activation_share: float = 1.0) -> float:
        """Return the bytes on a device; `activation_share` is 0.5 where all activations are in bfloat16."""
        kept = self.activations[0] + self.activations[1] * batch
        return 16 * self.trained + 4 * self.followed + self.state + activation_share * kept

    def breaks_first(self, machine: Machine, batch: int, *, most: int = 16384) -> tuple[str, int]:
        """Return the first term to cost more than half of the compute as devices double, and at how many devices."""
        world = 1
        while world <= most:
            terms = self.terms(machine, batch, world)
            terms["gradients"] = max(terms["gradients"] - 2 / 3 * terms["compute"], 0.0)
            terms["loading"] = max(terms["loading"] - terms["compute"] / 2, 0.0)  # it runs beside the compute
            worst = max((name for name in TERMS if name != "compute"), key=lambda name: terms[name])
            if terms[worst] > terms["compute"] / 2:
                return worst, world
            world *= 2
        return "none", most


def nothing(batch: int, world: int) -> float:
    """Return zero: nothing grows with the whole batch."""
    return 0.0


def pairs(views: int, dim: int, passes: int) -> Callable[[int, int], float]:
    """Return operations of similarities: `views` of b images against as many of b W, `passes` products of that size."""
    return lambda batch, world: 2.0 * passes * (views * batch) * (views * batch * world) * dim


def correlations(views: int, dim: int) -> Callable[[int, int], float]:
    """Return operations of [D, D] matrices of the whole batch, which every device computes: three products of each."""
    return lambda batch, world: 2.0 * 3 * views * batch * world * dim**2


def whitening(dim: int) -> Callable[[int, int], float]:
    """Return operations of four whitenings: eigenvalues of the smaller side (about 9 n^3), and three products."""

    def operations(batch: int, world: int) -> float:
        rows = batch * world
        side = min(rows, dim)
        return 4 * (9.0 * side**3 + 2.0 * 3 * rows * dim * side)

    return operations


def slots(batch: int, world: int, *most: int) -> float:
    """Return operations of contrasting at most so many slots of each image on each map, in both directions."""
    return sum(2 * pairs(count, 256, 2)(batch, world) for count in most)


# Published widths. Products: forward, recomputed in blocks, gradients of anchors and of candidates where they have any.
TOGETHER: dict[str, Callable[[int, int], float]] = {
    "simclr": pairs(2, 128, 4),
    "moco-v3": lambda batch, world: 2 * pairs(1, 256, 3)(batch, world),
    "barlow": correlations(1, 8192),
    "vicreg": correlations(2, 8192),
    "zerocl": whitening(8192),
    # At most one slot a cell, of 256 prototypes: 49 on a 7 x 7 map, 196 on 14 x 14, and all of them on finer maps.
    "slotcon": lambda batch, world: slots(batch, world, 49),
    "decon-sl": lambda batch, world: slots(batch, world, 49, 256),
    "decon-sl, 196 points": lambda batch, world: slots(batch, world, 49, 196),
    "decon-sl, 196 points, decoder_hidden 1024": lambda batch, world: slots(batch, world, 49, 196),
    "decon-ml": lambda batch, world: slots(batch, world, 49, 49, 196, 256, 256),
    "decon-ml, 196 points": lambda batch, world: slots(batch, world, 49, 49, 49, 49, 49),
}
