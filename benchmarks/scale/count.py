"""Counts the constants of every method at its published sizes and keeps them in `benchmarks/results/scale.json`.

    python -m benchmarks.scale.count [METHOD ...]      takes about a minute a method; those named are counted anew

Two batches tell what an image adds from what is there anyway. Slots are those of random weights and noise.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.scale.measure import measure
from benchmarks.scale.model import method_of
from dovetail.recipes.table import METHODS, parse

FILE = Path(__file__).parents[1] / "results" / "scale.json"
VARIANTS: dict[str, dict[str, int]] = {
    "decon-sl, 196 points": {"decoder_cells": 196},
    "decon-sl, 196 points, decoder_hidden 1024": {"decoder_cells": 196, "decoder_hidden": 1024},
    "decon-ml, 196 points": {"decoder_cells": 196},
}
"""Rows of a method, named before the comma, with options that are not the published ones."""

COUNTED = (*METHODS, "decon-sl", "decon-ml", *VARIANTS, "adclr-dino")
BATCHES = (2, 3)


def model_of(method: str) -> str:
    """Return the paper's model for a method: ResNet-50, with an FPN where there is a decoder, or ViT-S/16."""
    composition = parse(method_of(method))
    if METHODS[composition.base].family == "tokens":
        return "timm/vit_small_patch16_224"
    with_decoder = composition.decon or METHODS[composition.base].needs == "a decoder"
    return "timm/resnet50+fpn" if with_decoder else "timm/resnet50"


def main(methods: list[str]) -> None:
    """Count and write."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    for method in methods or COUNTED:
        model = model_of(method)
        options = VARIANTS.get(method, {})
        constants = [asdict(measure(method_of(method), model, batch, **options)) for batch in BATCHES]
        known[method] = {"model": model, "constants": constants}
        FILE.write_text(json.dumps(known, indent=1) + "\n")
        print(method, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
