"""Sizes of heads and the like for runs much smaller than the papers'.

A preset is a set of options; those that a method does not have are left out, and those that a user gives count more.
"""

from __future__ import annotations

from typing import Any, Literal

from dovetail.recipes.table import options_of

Preset = Literal["paper", "small"]

SMALL_IMAGES = 20_000

# The published widths are made for a hundred thousand images and eight GPUs. On a few thousand images and a
# processor the heads would take most of the time, and most prototypes would win no cell.
SMALL: dict[str, Any] = {
    "hidden": 1024,
    "dim": 128,
    "prototypes": 64,
    "decoder_grid": 28,
    "queue": 4096,
    "warmup_epochs": 2.0,
}


def choose(preset: Literal["auto", "paper", "small"], *, num_images: int, accelerator: str) -> Preset:
    """Return the preset: "small" for up to 20,000 images or on a processor, unless one is named."""
    if preset != "auto":
        return preset
    return "small" if num_images <= SMALL_IMAGES or accelerator == "cpu" else "paper"


def options(preset: Preset, method: str) -> dict[str, Any]:
    """Return the preset's options that a method has."""
    known = options_of(method)
    return {name: value for name, value in SMALL.items() if name in known} if preset == "small" else {}
