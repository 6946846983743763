"""Attacks by files of weights, and by the `model.json` beside them."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import dovetail
from benchmarks.attacks import claims
from benchmarks.attacks.arena import Arena, Attack, Code

CALLS = (
    "os.system('mkdir MADE')", "__import__('os').mkdir('MADE')", "eval(\"__import__('os').mkdir('MADE')\")",
    "subprocess.run(['mkdir', 'MADE'])", "(lambda: __import__('os').mkdir('MADE'))()", "os.mkdir('MADE')",
    "timm.create_model(__import__('os').mkdir('MADE'))", "timm.create_model('hf-hub:somebody/model')",
    "timm.create_model('test_resnet', **{'x': __import__('os').mkdir('MADE')})", "open('MADE', 'w')",
    "timm.create_model('local-dir:/tmp')", "timm.create_model('test_resnet', pretrained=True)",
    "timm.create_model('test_resnet', checkpoint_path='SECRET')", "timm.create_model('test_resnet', True)",
    "timm.create_model('test_resnet', pretrained_cfg={'file': 'SECRET'})", "smp.Unet('resnet18')",
    "smp.Unet('resnet18', 5, 'imagenet')", "smp.from_pretrained('somebody/model')", "timm.create_model()",
    "smp.Unet(encoder_name='tu-hf-hub:somebody/model', encoder_weights=None)", "torch.load('SECRET')",
    "torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone='DEFAULT')",
    "torch.hub.load('somebody/repository', 'model')", "dovetail.networks.construct.importlib('os')",
    "dovetail.networks.decoders.__builtins__('x')", "dovetail.networks..os.mkdir('MADE')", "", "1 + 1", "(" * 500,
    "[" * 50_000, "timm.create_model('test_resnet', no_such=1)", "timm.create_model(" + "-" * 5000 + "1)",
    "dovetail.networks.decoders.encoder_fpn(name='test_resnet', channels=10**9)", "\x00", "\ud800",
    "dovetail.networks.decoders.encoder_fpn(name='test_resnet', channels=1000000000)",
    "dovetail.networks.decoders.encoder_fpn(name='test_resnet', channels=-1)",
    "dovetail.networks.decoders.encoder_fpn(name='test_resnet', encoder_options={'in_chans': 1000000000})",
    "timm.create_model('test_vit', img_size=1000000)", "timm.create_model('test_vit', embed_dim=100000000)",
    "timm.create_model('test_vit', depth=100000000)", "timm.create_model('test_vit', patch_size=0)",
)  # fmt: skip
ODD: tuple[Any, ...] = (None, 3, -7, "x", [], {}, [1], {"a": 1}, 1e308, [[["x"]]], 10**30, True, "\x1b[2J", [None] * 3)
FIELDS = (
    "constructor", "encoder_prefix", "decoder_prefixes", "untrained", "in_channels", "image_size", "normalisation",
    "method", "extra", "format",
)  # fmt: skip
TEXTS = ("", "[", "[" * 100_000, '{"a":' * 100_000, "null", "3", '"x"', "[1]", "{}", "\x00", "NaN")


def attacks() -> Iterator[Attack]:
    """Yield all attacks of this module."""
    for reader in READERS:
        for kind, content in {**pickles(), **damaged()}.items():
            claim = claims.PICKLE if kind in pickles() else claims.DAMAGED
            yield Attack(claim, f"{reader}: {kind}", partial(replaced, reader, content))
        for value in (float("nan"), float("inf"), -float("inf")):
            for buffer in (False, True):
                yield Attack(claims.NOT_FINITE, f"{reader}: {value}", partial(spoiled, reader, value, buffer=buffer))
    for call in CALLS:
        yield Attack(claims.CONSTRUCTOR, f"model.json: {call[:60]!r}", partial(constructed, call))
    for field in FIELDS:
        for value in ODD:
            yield Attack(claims.SIDECAR, f"{field}: {str(value)[:20]!r}", partial(described, field, value))
    for text in TEXTS:
        for reader in ("load", "knn"):
            yield Attack(
                claims.SIDECAR, f"{reader}: the whole file {text[:20]!r}", partial(whole_sidecar, reader, text)
            )


def pickles() -> dict[str, Callable[[Path], bytes]]:
    """Return makers of pickles that make a folder."""

    def saved(made: Path, **options: Any) -> bytes:
        file = io.BytesIO()
        torch.save({"weight": Code(made)}, file, **options)
        return file.getvalue()

    def zipped(made: Path) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Code(made)))
        return file.getvalue()

    plain = {f"pickle {number}": partial(pickled, number) for number in range(pickle.HIGHEST_PROTOCOL + 1)}
    old = partial(saved, _use_new_zipfile_serialization=False)
    return {**plain, "torch": saved, "old torch": old, "zip": zipped}


def pickled(protocol: int, made: Path) -> bytes:
    """Return a plain pickle."""
    return pickle.dumps(Code(made), protocol)


def damaged() -> dict[str, Callable[[Path], bytes]]:
    """Return makers of files that are like safetensors, and are none."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    heads: dict[str, Any] = {
        "an unknown kind": {"a": entry | {"dtype": "F999"}}, "a negative side": {"a": entry | {"shape": [-2]}},
        "a terabyte": {"a": entry | {"shape": [1 << 38], "data_offsets": [0, 1 << 40]}},
        "places outside": {"a": entry | {"data_offsets": [8, 1 << 30]}}, "a list": [entry], "a number": 3,
        "places backwards": {"a": entry | {"data_offsets": [8, 0]}}, "text for a shape": {"a": entry | {"shape": "2"}},
        "two on one place": {"a": entry, "b": entry}, "odd remarks": {"__metadata__": {"a": [1]}, "a": entry},
        "an overflow": {"a": entry | {"shape": [1 << 32, 1 << 32, 4]}},
    }  # fmt: skip
    made = {name: framed(json.dumps(head).encode()) for name, head in heads.items()}
    made |= {
        "nothing": b"", "a few bytes": b"\x08\x00", "no header": bytes(16), "a header of exabytes": b"\xff" * 16,
        "deep nesting": framed(b"[" * 100_000), "no text": framed(b"\xff\xfe" * 8), "zeros": bytes(4096),
    }  # fmt: skip
    return {name: partial(given, content) for name, content in made.items()}


def given(content: bytes, made: Path) -> bytes:
    """Return what was given."""
    return content


def framed(head: bytes) -> bytes:
    """Return a header with its length before it, and eight bytes of data."""
    return struct.pack("<Q", len(head)) + head + bytes(8)


def by_load(arena: Arena, run: Path) -> None:
    arena.call(lambda: dovetail.load(run))


def by_load_into(arena: Arena, run: Path) -> None:
    arena.call(lambda: dovetail.load_into(torch.nn.Linear(1, 1), run / "exported" / "model.safetensors"))


def by_init(arena: Arena, run: Path) -> None:
    config = run / "config.yaml"
    arena.command("pretrain", "--config", config, "--init", run, "--out", arena.here / "new")


def by_export(arena: Arena, run: Path) -> None:
    arena.command("export", "--run", run, "--to", arena.here / "x.safetensors")


READERS: dict[str, Callable[[Arena, Path], None]] = {
    "load": by_load, "load_into": by_load_into, "--init": by_init, "export": by_export,
}  # fmt: skip


def replaced(reader: str, content: Callable[[Path], bytes], arena: Arena) -> None:
    """Put something else in the place of the weights."""
    run = arena.copied(arena.run)
    (run / "exported" / "model.safetensors").write_bytes(content(arena.made))
    READERS[reader](arena, run)


def spoiled(reader: str, value: float, arena: Arena, *, buffer: bool) -> None:
    """Make one value of the weights no finite number."""
    run = arena.copied(arena.run)
    path = run / "exported" / "model.safetensors"
    tensors = load_file(path)
    names = [name for name, one in tensors.items() if one.is_floating_point()]
    chosen = [name for name in names if ("running" in name) is buffer]
    tensors[chosen[0]].view(-1)[0] = value
    save_file(tensors, path)
    READERS[reader](arena, run)


def changed_sidecar(arena: Arena, **values: Any) -> Path:
    """Return a copy of the run whose `model.json` says something else."""
    run = arena.copied(arena.run)
    path = run / "exported" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return run


def constructed(call: str, arena: Arena) -> None:
    """Name a call in the place of the model's."""
    text = call.replace("MADE", str(arena.made)).replace("SECRET", str(arena.secret))
    by_load(arena, changed_sidecar(arena, constructor=text))


def described(field: str, value: Any, arena: Arena) -> None:
    """Say something odd of the model, to whoever loads it or measures it."""
    run = changed_sidecar(arena, **{field: value})
    arena.call(lambda: dovetail.load(run), refused=None)
    arena.call(lambda: dovetail.load_into(torch.nn.Linear(1, 1), run), refused=None)
    arena.command(
        *("evaluate", "knn", "--run", run, "--data", arena.classes, "--out", arena.here / "knn", "--k", 1),
        *("--accelerator", "cpu", "--workers", 0),
        refused=None,
    )


def whole_sidecar(reader: str, text: str, arena: Arena) -> None:
    """Write a text as the whole file."""
    run = arena.copied(arena.run)
    (run / "exported" / "model.json").write_text(text)
    if reader == "load":
        by_load(arena, run)
    else:
        arena.command(
            *("evaluate", "knn", "--run", run, "--data", arena.classes, "--out", arena.here / "knn", "--k", 1)
        )
