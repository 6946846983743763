"""Frames of random walks through Freedoom's levels, rendered by ViZDoom with exact instance masks.

A level belongs to one split as a whole, so no place and no thing that stands in it is seen on two sides. Kinds of
things come back in all levels, as wall textures do: the engine knows one sprite of each, and that is the domain. Eight
classes join the engine's names of things; what has no class is background.

The engine runs in a process of its own, straight out of the unpacked wheel: it needs no installation, and nothing of it
gets into this process.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.scenes.compose import Scene
from benchmarks.scenes.fetch import Fetched, Package, fetch
from benchmarks.scenes.stock import Side, Split, divided, side_of
from benchmarks.scenes.write import write_scenes
from dovetail.errors import DovetailError

ENGINE = Package("vizdoom", "python", "1.3.2", "4376e0957d4e82b857870fc0e7462acc23cb821446c647d3975ce84a5e59032f")
LEVELS = [f"freedoom1:E{part}M{level}" for part in range(1, 5) for level in range(1, 10)]
LEVELS += [f"freedoom2:MAP{level:02d}" for level in range(1, 33)]
NAMES: Mapping[str, tuple[str, ...]] = {
    "soldier": ("Zombieman", "ShotgunGuy", "ChaingunGuy", "WolfensteinSS"),
    "monster": (
        *("DoomImp", "Demon", "Spectre", "Cacodemon", "BaronOfHell", "HellKnight", "Revenant", "Fatso", "Arachnotron"),
        *("PainElemental", "LostSoul", "Archvile", "SpiderMastermind", "Cyberdemon"),
    ),
    "barrel": ("ExplosiveBarrel", "BurningBarrel"),
    "health": ("Stimpack", "Medikit", "HealthBonus", "Soulsphere", "Megasphere", "Berserk"),
    "armour": ("GreenArmor", "BlueArmor", "ArmorBonus"),
    "ammunition": (
        *("Clip", "ClipBox", "Shell", "ShellBox", "RocketAmmo", "RocketBox", "Cell", "CellPack", "Backpack"),
        *("Shotgun", "SuperShotgun", "Chaingun", "RocketLauncher", "PlasmaRifle", "Chainsaw", "BFG9000"),
    ),
    "lamp": (
        *("TechLamp", "TechLamp2", "Column", "Candlestick", "Candelabra", "FloatingSkull"),
        *("RedTorch", "GreenTorch", "BlueTorch", "ShortRedTorch", "ShortGreenTorch", "ShortBlueTorch"),
    ),
    "pillar": (
        *("TorchTree", "BigTree", "TechPillar", "TallGreenColumn", "ShortGreenColumn", "TallRedColumn"),
        *("ShortRedColumn", "Stalagtite", "Stalagmite", "HeartColumn", "SkullColumn", "EvilEye"),
    ),
}
CLASSES = tuple(NAMES)
LABELS = {thing: label for label, things in enumerate(NAMES.values()) for thing in things}


def fetch_engine(cache: Path) -> Fetched:
    """Return the unpacked engine in the cache, fetched where it is missing."""

    def keep(unpacked: Path, kept: Path) -> None:
        for part in ("vizdoom", "vizdoom.libs"):
            shutil.copytree(unpacked / part, kept / part, ignore=shutil.ignore_patterns("scenarios", "gymnasium*"))
        (kept / "vizdoom" / "scenarios").mkdir()  # the package lists it when it is imported
        (kept / "vizdoom" / "vizdoom").chmod(0o755)

    return fetch(ENGINE, cache, keep, edition="1")


def make_corridors(folder: Path, engine: Path, side_px: int, counts: Mapping[Split, int], seed: int) -> dict[str, Any]:
    """Write the set into `folder` and return what is in it."""
    sides = divided(LEVELS, (seed, 3))
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        frames: dict[Side, list[Path]] = {}
        for side in dict.fromkeys(side_of(split) for split in counts):
            own = [level for level in LEVELS if sides[level] == side]
            wanted = sum(count for split, count in counts.items() if side_of(split) == side)
            frames[side] = walk(engine, Path(scratch) / side, own, wanted, seed)
        order = {side: np.random.default_rng((seed, 4)).permutation(len(found)) for side, found in frames.items()}
        makers, taken = {}, dict.fromkeys(frames, 0)
        for split, count in counts.items():
            side = side_of(split)
            places = order[side][taken[side] : taken[side] + count]
            taken[side] += count
            if len(places) < count:
                raise DovetailError(
                    f"The walks gave {len(frames[side])} frames with content for {side}; ask for fewer scenes."
                )
            makers[split] = partial(read_frame, [frames[side][place] for place in places], side_px)
        facts = write_scenes(folder, CLASSES, makers, counts)
    return facts | {"levels": {side: [one for one in LEVELS if sides[one] == side] for side in frames}}


def walk(engine: Path, out: Path, levels: list[str], wanted: int, seed: int) -> list[Path]:
    """Return frames with content from walks through some levels, equally many from each as far as they have them."""
    out.mkdir()
    task = {
        "engine": str(engine.resolve()),
        "out": str(out.resolve()),
        "levels": levels,
        "per_level": -(-wanted * 3 // (2 * len(levels))),  # some levels have far less
        "seed": seed,
        "labels": LABELS,
    }
    script = Path(__file__).resolve().with_name("walk.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(task),
        cwd=out,  # the engine leaves a file of settings where it runs
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise DovetailError(f"The walk through the levels failed ({said[-1]}); is {ENGINE.name} made for this machine?")
    return sorted(out.glob("*.npz"))


def read_frame(frames: list[Path], side_px: int, index: int) -> Scene:
    """Return a frame as a scene, its objects numbered anew where one is lost on the way."""
    with np.load(frames[index]) as content:
        pixels, owners = scaled(content["pixels"], content["owners"], side_px)
        labels = content["labels"].tolist()
    seen = [number for number in range(1, len(labels) + 1) if (owners == number).any()]
    table = np.zeros(len(labels) + 1, dtype=np.uint8)
    table[seen] = np.arange(1, len(seen) + 1)
    return Scene(pixels, table[owners], [labels[number - 1] for number in seen])


def scaled(
    frame: NDArray[np.uint8], owners: NDArray[np.uint8], side_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the middle square of a frame [H, W, 3] and of its owners [H, W] at another size.

    Colours are averaged; a pixel's owner is that of the point at its middle.
    """
    height, width = owners.shape
    side = min(height, width)
    box = ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2)
    picture = Image.fromarray(frame).resize((side_px, side_px), Image.Resampling.BOX, box=box)
    places = Image.fromarray(owners).resize((side_px, side_px), Image.Resampling.NEAREST, box=box)
    return np.asarray(picture), np.asarray(places)
