"""What a job computed, as fingerprints that tell a changed bit, another name, another dtype and another shape.

A manifest maps the name of every tensor, number and text that a job left to its dtype, shape and SHA-256. Manifests of
two trees are compared entry by entry, so that a difference comes with the name of the first tensor that has it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

Manifest = dict[str, str]

TIMES = ("images_per_second", "data_wait")  # in metrics.jsonl
CHECKPOINT_PARTS = ("step", "learner", "optimiser", "skipped_steps")
RESULT_PARTS = ("task", "rows", "details")
# What is said of exported weights. The class paths of the model's constructor may move; loading shows that they work.
SIDECAR_PARTS = (
    *("in_channels", "image_size", "encoder_prefix", "decoder_prefixes", "decoder_root", "untrained", "normalisation"),
)


def entry(value: Any) -> str:
    """Return "dtype shape SHA-256" of a tensor, an array or a plain value."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        kind, shape = str(value.dtype).removeprefix("torch."), list(value.shape)
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    else:
        kind, shape, data = type(value).__name__, [], value if isinstance(value, bytes) else repr(value).encode()
    return f"{kind} {json.dumps(shape)} {hashlib.sha256(data).hexdigest()}"


def flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the entry of every leaf of nested mappings and sequences."""
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from flat(one, f"{name}/{key}")
    elif isinstance(value, (list, tuple)) and value:
        for index, one in enumerate(value):
            yield from flat(one, f"{name}/{index}")
    else:
        yield name, entry(value)


def manifest_of(value: Any, name: str) -> Manifest:
    """Return the manifest of nested plain values and tensors."""
    return dict(flat(value, name))


def file_manifest(path: Path) -> Manifest:
    """Return the manifest of what a file holds: tensors, pixels or values of the kinds known here, else its bytes."""
    name = path.name
    match path.suffix:
        case ".safetensors":
            return manifest_of(load_file(path), name)
        case ".pt" | ".pth":
            return manifest_of(torch.load(path, weights_only=True), name)
        case ".npy":
            return manifest_of(np.load(path), name)
        case ".png":
            with Image.open(path) as image:
                return manifest_of({"mode": image.mode, "pixels": np.array(image)}, name)
        case ".json":
            return manifest_of(json.loads(path.read_text(encoding="utf-8")), name)
    return manifest_of(path.read_bytes(), name)


def folder_manifest(folder: Path) -> Manifest:
    """Return the manifest of all files in a folder, without hidden ones, which are lists of the others.

    Raises:
        FileNotFoundError: Where it has no file.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"{folder} has no file")
    found: Manifest = {}
    for file in files:
        place = file.relative_to(folder).parent.as_posix()
        found |= {name if place == "." else f"{place}/{name}": value for name, value in file_manifest(file).items()}
    return found


def run_manifest(run: Path) -> Manifest:
    """Return the manifest of a pre-training run: exported weights, last checkpoint, and metrics without times."""
    found: Manifest = {}
    for file in sorted((run / "exported").glob("*.safetensors")):
        found |= {f"exported/{name}": value for name, value in file_manifest(file).items()}
    sidecar = json.loads((run / "exported" / "model.json").read_text(encoding="utf-8"))
    found |= manifest_of({part: sidecar.get(part) for part in SIDECAR_PARTS}, "exported/model.json")
    state = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    found |= manifest_of({part: state[part] for part in CHECKPOINT_PARTS}, "checkpoint")
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        reading = {key: value for key, value in json.loads(line).items() if key not in TIMES}
        found |= manifest_of(reading, f"metrics/step {reading['step']}")
    return found


def results_manifest(out: Path) -> Manifest:
    """Return the manifest of what `finetune` or `evaluate` left: the scores in results.json, and weights if any."""
    content = json.loads((out / "results.json").read_text(encoding="utf-8"))
    found = manifest_of({part: content.get(part) for part in RESULT_PARTS}, "results")
    for file in sorted(out.glob("*.safetensors")):
        found |= file_manifest(file)
    return found


def digest(manifest: Mapping[str, str]) -> str:
    """Return one SHA-256 over the names, dtypes, shapes and bytes of a manifest, whatever its order."""
    lines = "".join(f"{name}\0{value}\n" for name, value in sorted(manifest.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def difference(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Return what the first differing entry is, in the order of the old manifest; an empty text where none differs."""
    differing = [name for name in [*old, *(name for name in new if name not in old)] if old.get(name) != new.get(name)]
    if not differing:
        return ""
    name = differing[0]
    if name not in old:
        return f"nothing changed, and {len(differing)} of {len(new)} are only in the new tree, first {name}"
    if name not in new:
        how = "is missing in the new tree"
    else:
        pairs = zip(("dtype", "shape", "bits"), parts_of(old[name]), parts_of(new[name]), strict=True)
        what, before, after = next(pair for pair in pairs if pair[1] != pair[2])
        how = "has other bits" if what == "bits" else f"has {what} {after}, not {before}"
    more = f" (and {len(differing) - 1} more of {len(old.keys() | new.keys())})" if len(differing) > 1 else ""
    return f"{name} {how}{more}"


def parts_of(value: str) -> tuple[str, str, str]:
    """Return an entry's dtype, shape and SHA-256."""
    kind, _, rest = value.partition(" ")
    shape, _, bits = rest.rpartition(" ")
    return kind, shape, bits
