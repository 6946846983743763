"""The cost of pre-training at scale: a table from counted constants, formulas and assumed machines.

    python -m benchmarks.scale                  # writes benchmarks/results/scale.md, in seconds
    python -m benchmarks.scale.count            # counts the constants again, in minutes
    python -m benchmarks.scale.here             # measures loading, and one process compared with two
    python -m benchmarks.scale.memory           # shows that memory does not grow with the number of images

Only the constants and the results of `here` are measured; everything for more than two processes is extrapolated.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.scale import count, here, memory
from benchmarks.scale.model import Cost, Machine, method_of
from dovetail.recipes.table import METHODS, parse

TABLE = Path(__file__).parents[1] / "results" / "scale.md"
BATCH = 64
WORLDS = (1, 8, 64, 512)
# Assumptions: a GPU of 80 GB that sustains so many operations a second in bfloat16, a network of 25 GB/s for each GPU,
# 10 microseconds for a short message between two, 12 cores for each GPU. What a core loads is measured here.
ASSUMED = {"link": 25e9, "latency": 10e-6, "cores": 12, "memory": 80e9}
SUSTAINED = {"dense": 70e12, "image": 70e12, "tokens": 150e12}
IMAGENET = (1_281_167, 100)
BILLION = (1_000_000_000, 1)
FEW_VIEWS, MANY_VIEWS = "loaded two views", "loaded ten views"
MANY = ("dino", "ibot", "selfpatch", "adclr-dino")


def machine_for(method: str) -> Machine:
    """Return the assumed machine, with what a core here loads for the method's number of views."""
    rates = json.loads(here.FILE.read_text())
    family = METHODS[parse(method_of(method)).base].family
    return Machine(**ASSUMED, flops=SUSTAINED[family], loaded=rates[MANY_VIEWS if method in MANY else FEW_VIEWS])


def costs() -> list[Cost]:
    """Return the counted constants of all methods."""
    known = json.loads(count.FILE.read_text())
    return [Cost.fitted(method, entry["constants"]) for method, entry in known.items()]


def constants_table() -> list[str]:
    """Return the constants, for each image and for each step."""
    models = {method: entry["model"] for method, entry in json.loads(count.FILE.read_text()).items()}
    lines = [
        "| method | model | GFLOP an image | activations, MB an image | trained, M | teacher, M | state, MB | "
        "gathered, kB an image | BatchNorm passes |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for cost in costs():
        cells = (
            f"{cost.flops[1] / 1e9:,.0f}",
            f"{cost.activations[1] / 1e6:,.0f}",
            f"{cost.trained / 1e6:.1f}",
            f"{cost.followed / 1e6:.1f}",
            f"{cost.state / 1e6:.1f}",
            f"{(cost.gathered[1] + cost.returned[1]) / 1e3:.1f}",
            f"{cost.norms} + {cost.teacher_norms}",
        )
        lines.append(f"| {cost.method} | {models[cost.method]} | " + " | ".join(cells) + " |")
    return lines


def scale_table() -> list[str]:
    """Return images a second, traffic and memory against devices; extrapolated."""
    header = " | ".join(f"{world} GPUs" if world > 1 else "1 GPU" for world in WORLDS)
    lines = [
        f"| method | images a second: {header} | sent a step at 64 GPUs, MB | memory, GB | first to exceed half of "
        "compute |",
        "|---|" + "---:|" * (len(WORLDS) + 2) + "---|",
    ]
    for cost in costs():
        machine = machine_for(cost.method)
        rates = [BATCH * world / cost.seconds(machine, BATCH, world) for world in WORLDS]
        term, world = cost.breaks_first(machine, BATCH)
        sent = sum(cost.traffic(BATCH, 64).values()) / 1e6
        memory_gb = cost.memory(BATCH, activation_share=0.5) / 1e9
        when = "nothing below 16,384" if term == "none" else f"{term}, at {world:,}"
        cells = [*(f"{rate:,.0f}" for rate in rates), f"{sent:,.0f}", f"{memory_gb:,.0f}", when]
        lines.append(f"| {cost.method} | " + " | ".join(cells) + " |")
    return lines


def bill_table() -> list[str]:
    """Return GPU hours of two runs; extrapolated."""
    lines = [
        "| method | ImageNet-1k, 100 epochs: hours on 8 GPUs | GPU hours | a billion images once: hours on 512 GPUs | "
        "GPU hours |",
        "|---|---:|---:|---:|---:|",
    ]
    for cost in costs():
        machine, cells = machine_for(cost.method), []
        for (images, epochs), world in ((IMAGENET, 8), (BILLION, 512)):
            hours = images * epochs / (BATCH * world) * cost.seconds(machine, BATCH, world) / 3600
            cells += [f"{hours:,.1f}", f"{hours * world:,.0f}"]
        lines.append(f"| {cost.method} | " + " | ".join(cells) + " |")
    return lines


def here_table() -> list[str]:
    """Return what was measured on one and two processes, and what the model says."""
    found = json.loads(here.FILE.read_text())
    alone, sent = found["half_alone"], found["gradient_bytes"] / found["link"]
    return [
        "| what | measured | model |",
        "|---|---:|---:|",
        f"| one process, {here.BATCH} images, processor time | {found['one_process'] * 1e3:.0f} ms | |",
        f"| one process, {here.BATCH // 2} images, processor time | {alone * 1e3:.0f} ms | |",
        f"| two processes, {here.BATCH // 2} images each, processor time of one | "
        f"{found['two_processes'] * 1e3:.0f} ms | {alone * 1e3:.0f} to {(alone + sent) * 1e3:.0f} ms |",
        f"| all-reduce of one number | {found['latency'] * 1e6:.0f} us | |",
        f"| all-reduce of 16 MiB | {found['link'] / 1e9:.2f} GB/s | |",
        f"| photographs a core loads, two views of 224 px | {found[FEW_VIEWS]:.0f} /s | |",
        f"| photographs a core loads, two views of 224 px and eight of 96 px | {found[MANY_VIEWS]:.0f} /s | |",
    ]


def page() -> str:
    """Return the whole table."""
    parts = [
        ["# Cost at scale"],
        ["Written by `python -m benchmarks.scale`; what the numbers mean is in docs/scale.md."],
        ["## Counted: one step at published sizes", "", *constants_table()],
        ["## Measured here: one process against two", "", *here_table()],
        ["## Measured here: memory of the order of photographs", "", *memory.table()],
        [f"## Extrapolated: {BATCH} images on each GPU", "", *scale_table()],
        ["## Extrapolated: two runs", "", *bill_table()],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def main() -> None:
    """Write the table."""
    TABLE.write_text(page())
    print(TABLE.read_text())


if __name__ == "__main__":
    main()
