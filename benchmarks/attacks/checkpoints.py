"""Attacks by checkpoints that carry a right checksum, and by odd lines in a run's log."""

from __future__ import annotations

import copy
import io
import json
import pickle
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.attacks import claims
from benchmarks.attacks.arena import Arena, Attack, Code
from dovetail.train.checkpoints import read
from dovetail.train.checksummed import seal, write_sealed

FIELDS = ("format", "step", "settings", "learner", "optimiser", "skipped_steps")
ODD: tuple[Any, ...] = (None, -7, 10**30, "x", "\x1b[2J", 1.5, [], {}, {"a": 1}, [{"a": [1]}], True)
SETTINGS: tuple[Any, ...] = (None, -7, 10**30, "x", [], float("nan"))
TENSORS = {
    "none": None,
    "text": "x",
    "another shape": torch.zeros(3, 5, 7),
    "whole numbers": torch.zeros(2, dtype=torch.int64),
    "no values": torch.zeros(0),
    "sparse": torch.zeros(2, 2).to_sparse(),
    "complex": torch.zeros(2, dtype=torch.complex64),
    "expanded to a terabyte": torch.zeros(1).expand(1 << 38),
}
LINES = (
    b"\xff\xfe\n",
    b"{\n",
    b"[1]\n",
    b"3\n",
    b"null\n",
    b'{"step": "x"}\n',
    b'{"step": -1}\n',
    b'{"step": 1e400}\n',
    b'{"step": NaN}\n',
    b'{"step": [1]}\n',
    b'{"step": 1, "loss": "x"}\n',
    b'{"step": 1, "loss": null, "lr": {}}\n',
    b"[" * 100_000 + b"\n",
    b'{"a":' * 50_000 + b"\n",
    b"\x00" * 1000 + b"\n",
    b'{"step": 1, "parts": 3}\n',
    b'{"step": 1, "parts": {"a": "x"}}\n',
    b'{"step": 1, "effective_rank": [1]}\n',
    b'{"step": 1}' * 3,
    b'{"step": 1, "spread": {"\\u001b[2J": 1}, "effective_rank": {"\\u001b[2J": 1}}\n',
    b'{"step": 1' + b"0" * 5000 + b"}\n",
    b'{"step": 1, "weights": {"a": {"b": 1}}, "loss": true}\n',
    b'{"step": 1, "epoch": {}, "dense": 3, "knn": "x"}\n',
)


def attacks() -> Iterator[Attack]:
    """Yield all attacks of this module."""
    for kind in ("torch", "old torch", "pickle", "zip", "nested"):
        for names in (("last.ckpt",), ("last.ckpt", "previous.ckpt")):
            yield Attack(claims.CODE_IN_CHECKPOINT, f"{kind} as {names}", partial(coded, kind, names))
    for name in ("state.pt", ".metadata"):
        yield Attack(claims.CODE_IN_CHECKPOINT, f"a folder of pieces: {name}", partial(in_pieces, name))
    for field in FIELDS:
        for value in ODD:
            yield Attack(claims.RESEALED, f"{field}: {str(value)[:20]!r}", partial(resealed, {field: value}))
        yield Attack(claims.RESEALED, f"without {field}", partial(resealed, {field: ...}))
    for value in SETTINGS:
        for name in ("seed", "epochs", "global_batch", "steps_per_epoch", "peak_lr", "batch_size", "precision"):
            yield Attack(claims.RESEALED, f"settings.{name}: {value!r}", partial(resealed_settings, name, value))
    for kind in TENSORS:
        yield Attack(claims.RESEALED, f"a weight: {kind}", partial(other_weight, kind))
    for number in (float("nan"), float("inf"), -float("inf")):
        yield Attack(claims.NAN_IN_CHECKPOINT, str(number), partial(not_finite, number))
    for line in LINES:
        for reader in ("resume", "compare"):
            yield Attack(claims.LOG, f"{reader}: {line[:24]!r}", partial(logged, reader, line))


def alone(arena: Arena) -> tuple[Path, dict[str, Any]]:
    """Return a copy of the run with one checkpoint, and what that holds, before its first step."""
    run = arena.copied(arena.run)
    (run / "checkpoints" / "previous.ckpt").unlink(missing_ok=True)
    return run, read(run / "checkpoints" / "last.ckpt") | {"step": 0}


def resealed(changed: dict[str, Any], arena: Arena) -> None:
    """Write a checkpoint with other values, or without one of them."""
    run, state = alone(arena)
    state = {name: value for name, value in (state | changed).items() if value is not ...}
    write_sealed(state, run / "checkpoints" / "last.ckpt")
    arena.resumed(run, refused=None)


def resealed_settings(name: str, value: Any, arena: Arena) -> None:
    """Write a checkpoint whose settings say something else."""
    run, state = alone(arena)
    write_sealed({**state, "settings": {**state["settings"], name: value}}, run / "checkpoints" / "last.ckpt")
    arena.resumed(run, refused=None)


def other_weight(kind: str, arena: Arena) -> None:
    """Write a checkpoint with something else as its first weight, and its optimiser's state."""
    run, state = alone(arena)
    state = copy.deepcopy(state)
    state["learner"][next(iter(state["learner"]))] = TENSORS[kind]
    write_sealed(state, run / "checkpoints" / "last.ckpt")
    arena.resumed(run)


def not_finite(number: float, arena: Arena) -> None:
    """Write a checkpoint in which one value is no finite number, the only one there is."""
    run, state = alone(arena)
    weights = {name: value.clone() for name, value in state["learner"].items()}
    first = next(value for value in weights.values() if value.is_floating_point())
    first[(0,) * first.ndim] = number
    write_sealed({**state, "learner": weights}, run / "checkpoints" / "last.ckpt")
    arena.resumed(run)


def coded(kind: str, names: tuple[str, ...], arena: Arena) -> None:
    """Write code as checkpoints."""
    run = arena.copied(arena.run)
    code = Code(arena.made)
    for path in (run / "checkpoints" / name for name in names):
        path.unlink(missing_ok=True)
        if kind == "pickle":
            path.write_bytes(pickle.dumps({"step": code}) + bytes(200))
        elif kind == "zip":
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("archive/data.pkl", pickle.dumps({"step": code}))
                archive.writestr("archive/version", "3")
            path.write_bytes(file.getvalue())
        else:
            content = {"step": code} if kind != "nested" else {"step": 1, "learner": {"w": [code]}, "settings": {}}
            torch.save(content, path, _use_new_zipfile_serialization=kind != "old torch")
        seal(path)
    arena.resumed(run, refused=True if len(names) == 2 else None)


def in_pieces(name: str, arena: Arena) -> None:
    """Write code into a checkpoint that is a folder."""
    run = arena.copied(arena.run)
    for path in (run / "checkpoints").glob("*.ckpt"):
        path.unlink()
    folder = run / "checkpoints" / "last.ckpt"
    folder.mkdir()
    if name == "state.pt":
        torch.save({"files": {".metadata": Code(arena.made)}}, folder / name)
        seal(folder / name)
    else:
        write_sealed({"files": {name: [1, "0"]}, "step": 1}, folder / "state.pt")
        (folder / name).write_bytes(pickle.dumps(Code(arena.made)))
    arena.resumed(run)


def logged(reader: str, line: bytes, arena: Arena) -> None:
    """Add an odd line to the log, and another good one."""
    run = arena.copied(arena.run)
    log = run / "metrics.jsonl"
    log.write_bytes(log.read_bytes() + line + json.dumps({"step": 1}).encode() + b"\n")
    if reader == "resume":
        write_sealed(read(run / "checkpoints" / "last.ckpt") | {"step": 0}, run / "checkpoints" / "last.ckpt")
        arena.resumed(run, "--report-every-minutes", "5", refused=None)
    else:
        arena.command("compare", run, "--out", arena.here / "x.html", refused=None)
