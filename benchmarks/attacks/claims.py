"""The claims: lines of the tables in docs/security.md that an attack can break."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
HEADINGS = ("A file that you read cannot", "Attack")

COMMAND = "run a command or code"
DOWNLOAD = "start a download"
IMAGENET = "ask for ImageNet weights"
MODEL = "name a model that downloads weights"
LOGGERS = "send readings elsewhere"
TYPED = "set `overwrite`, `resume` or `out`"
REDIRECT = "redirect the run that it belongs to"
PICKLE = "a pickle with that name"
DAMAGED = "any other damage to the file"
NOT_FINITE = "NaN or infinite weights or buffers"
CONSTRUCTOR = "a constructor in `model.json` that is no model"
RESULTS = "any other `results.json`"
SIDECAR = "any other `model.json`"
TASK = "any `task.json` of a fine-tuned run"
CODE_IN_CHECKPOINT = "code in a checkpoint, or in the index of one in pieces"
RESEALED = "odd values with a right checksum"
NAN_IN_CHECKPOINT = "NaN in it"
CONFIG = "odd values in `config.yaml`"
ALIASES = "YAML aliases that stand for a billion values"
NESTING = "deep nesting"
LOG = "odd lines in `metrics.jsonl`"
COCO_OUTSIDE = "COCO images outside the set's folder"
COCO_MASKS = "COCO masks of a terabyte"
COCO = "any other COCO file"
NUMBERS = "numbers out of range"
HUGE_FILES = "a sparse file of a terabyte, a device, a pipe"
GROWING = "an image that grows out of nothing"
OUTSIDE = "names that lead out of an archive"
LINKS = "links and devices in an archive"
BOMBS = "bombs in an archive"
PIPE = "a pipe among shards"
SHARDS = "any other damage to a shard or an archive"
NAMES = "names that a terminal or a page would act on"


@cache
def claimed() -> tuple[str, ...]:
    """Return the first cell of each row of these tables, in the page's order."""
    found: list[str] = []
    inside = False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        first = line.split("|")[1].strip()
        if first in HEADINGS:
            inside = True
        elif inside and not re.fullmatch(r"[-: ]+", first):
            found.append(first)
    return tuple(found)


def line_of(claim: str) -> str:
    """Return the page's line that begins with a claim's words; raise `LookupError` where there is none."""
    found = [line for line in claimed() if line.startswith(claim)]
    if not found:
        raise LookupError(f"docs/security.md has no line that begins with {claim!r}.")
    return found[0]
