"""Attacks by names of files, classes and options: a terminal or a page would act on them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.attacks import claims
from benchmarks.attacks.arena import Arena, Attack, BrokenError, noise

HOSTILE = (
    "\x1b]0;owned\x07",
    "\x1b[2J\x1b[H",
    "\x1b[31mred",
    "\x9b2J",
    "\x07\x08\x08",
    "\u202egpj.exe",
    "a\rb",
    "[bold red]x[/]",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}",
    "${HOME}",
    "%s%n",
    "new\nline",
    "\u200b\ufeff",
    "a" * 240,
    "-rf",
    "../x",
    "\udcff\udcfe",
    "\x7f\x00x",
)
PLACES = ("data", "compare", "results", "method", "option", "image", "class", "task", "out")


def attacks() -> Iterator[Attack]:
    """Yield one attack for each hostile name in each place where it is shown."""
    for name in HOSTILE:
        for place in PLACES:
            fits = "\x00" not in name and "/" not in name and len(os.fsencode(name)) < 250
            if fits or place in ("results", "method", "task"):
                yield Attack(claims.NAMES, f"{place}: {name[:30]!a}", partial(PLACED[place], name))


def as_data(name: str, arena: Arena) -> None:
    arena.command(
        "pretrain", "--data", f"{arena.here}/{name}", "--model", "timm/test_resnet", "--out", arena.here / "o"
    )


def as_compared(name: str, arena: Arena) -> None:
    arena.command("compare", f"{arena.here}/{name}")


def as_method(name: str, arena: Arena) -> None:
    arena.command("show", name.replace("\x00", "").lstrip("-") or "x")


def as_option(name: str, arena: Arena) -> None:
    arena.command("pretrain", f"--{name}", "1")


def as_out(name: str, arena: Arena) -> None:
    """Name the folder of a run that has none."""
    arena.command("pretrain", "--resume", f"--out={arena.here}/{name}")


def as_results(name: str, arena: Arena) -> None:
    """Put a name everywhere in results, and look at the page as well."""
    score = {"mean": 0.5, "values": [0.5], "deviation": None, "low": None, "high": None}
    content = {
        "format": 1,
        "task": name,
        "rows": [{"setting": {"start": name, name: name}, "scores": {name: score}}],
        "config": {"data": name},
        "seed": 0,
        "versions": {name: name},
        "device": name,
        "data": {"fingerprint": name},
        "notes": [name],
    }
    (arena.here / "results.json").write_text(json.dumps(content))
    arena.command("compare", arena.here, "--out", arena.here / "x.html", refused=False)
    check_page(arena.here / "x.html")


def as_image(name: str, arena: Arena) -> None:
    """Name an image that cannot be read, and look at the run's page."""
    folder = arena.copied(arena.photos)
    (folder / f"{name}.png").write_bytes(b"no image")
    noise(9).save(folder / f"{name}2.png")
    config = arena.run / "config.yaml"
    arena.command(
        *("pretrain", "--config", config, "--data", folder, "--out", arena.here / "new", "--report-every-minutes", 1),
        refused=False,
    )
    check_page(arena.here / "new" / "report.html")
    arena.command(
        "embed",
        "--run",
        arena.run,
        "--data",
        folder,
        "--out",
        arena.here / "o.npy",
        "--accelerator",
        "cpu",
        refused=None,
    )


def as_class(name: str, arena: Arena) -> None:
    """Name a class by its folder."""
    folder = arena.copied(arena.classes)
    for split in ("train", "val"):
        (folder / split / "a").rename(folder / split / name)
    arena.command(
        *("evaluate", "knn", "--run", arena.run, "--data", folder, "--out", arena.here / "knn", "--k", 1),
        *("--accelerator", "cpu", "--workers", 0),
        refused=None,
    )
    arena.command("evaluate", "knn", "--run", arena.run, "--data", folder, "--check", refused=None)


def as_task(name: str, arena: Arena) -> None:
    """Name a class in a fine-tuned run."""
    run = arena.copied(arena.tuned["classify"])
    content = json.loads((run / "task.json").read_text())
    (run / "task.json").write_text(json.dumps({**content, "names": [name, f"{name}2"]}))
    arena.command(
        *("predict", "--run", run, "--data", arena.photos, "--out", arena.here / "out", "--accelerator", "cpu"),
        *("--workers", 0),
        refused=None,
    )
    shutil.rmtree(arena.here / "out", ignore_errors=True)


def check_page(path: Path) -> None:
    """Raise `BrokenError` where a page holds markup of a hostile name."""
    text = path.read_text(encoding="utf-8")
    for markup in ("<script>alert(1)", "<img src=x"):
        if markup in text:
            raise BrokenError(f"the page holds {markup}")


PLACED = {
    "data": as_data,
    "compare": as_compared,
    "results": as_results,
    "method": as_method,
    "option": as_option,
    "image": as_image,
    "class": as_class,
    "task": as_task,
    "out": as_out,
}
