"""`python -m benchmarks.attacks`: try every attack and print, by claim, how many were tried and how many held.

Exits with 1 if a claim is broken. `--only WORD` only tries attacks with the word in their claim or name, `--every N`
only every N-th attack.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from benchmarks.attacks import archives, checkpoints, configs, labels, names, numbers, weights
from benchmarks.attacks.arena import Arena, Attack, BrokenError, same_threads
from benchmarks.attacks.claims import claimed, line_of
from benchmarks.attacks.watch import TooLongError, Watch, limit_memory

RESULTS = Path(__file__).parents[1] / "results" / "attacks.md"
MODULES = (configs, numbers, weights, checkpoints, labels, archives, names)


@dataclass(frozen=True)
class Outcome:
    """Of one attack: `why` the claim is broken, nothing where it held; `traceback` for an exception that got out."""

    attack: Attack
    why: str = ""
    traceback: bool = False


def every_attack() -> list[Attack]:
    """Return all attacks, in the order of the tables."""
    return [attack for module in MODULES for attack in module.attacks()]


def tried(attack: Attack, arena: Arena, watch: Watch) -> Outcome:
    """Try one attack in a clean folder."""
    arena.clear()
    working = Path.cwd()
    os.chdir(arena.here)
    outcome = Outcome(attack)
    try:
        with watch.noting() as notes:
            try:
                attack.act(arena)
            except (BrokenError, TooLongError) as error:
                outcome = Outcome(attack, str(error))
            except (Exception, SystemExit) as error:
                outcome = Outcome(attack, f"{type(error).__name__}: {str(error)[:120]}", traceback=True)
    finally:
        os.chdir(working)
    if arena.made.exists():
        return Outcome(attack, "code of the file ran")
    return Outcome(attack, notes[0]) if notes and not outcome.why else outcome


def run(attacks: Iterable[Attack], root: Path) -> Iterator[Outcome]:
    """Try attacks one after the other, in a folder under `root`; yield what came of each."""
    arena = Arena(root)
    ready(arena)
    watch = Watch(root, arena.secret)
    for number, attack in enumerate(attacks):
        yield tried(attack, arena, watch)
        if number % 50 == 49:
            gc.collect()


def ready(arena: Arena) -> None:
    """Make the runs that attacks change, which imports all that is needed too."""
    same_threads()
    _ = arena.run, arena.coco


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the lines of the table, one for each claim that was attacked, in the page's order."""
    lines = ["| claim | tried | held |", "|---|---:|---:|"]
    for claim in claimed():
        own = [one for one in outcomes if line_of(one.attack.claim) == claim]
        held = sum(not one.why for one in own)
        if own:
            lines.append(f"| {claim} | {len(own)} | {held if held == len(own) else f'**{held}**'} |")
    return lines


def page(outcomes: Sequence[Outcome], command: str, seconds: float) -> str:
    """Return the whole page of results."""
    broken = [one for one in outcomes if one.why]
    tracebacks = sum(one.traceback for one in outcomes)
    faults = [f"* {one.attack.claim}: {one.attack.name}: {one.why}" for one in broken]
    return "\n".join(
        [
            "# Attacks on the files and numbers that are read",
            "",
            f"**{len(outcomes)} attacks tried, {len(broken)} broken, {tracebacks} tracebacks.**",
            "Claims are the lines of",
            "[docs/security.md](../../docs/security.md). An attack breaks a claim when code of a file runs, something",
            "connects or is written elsewhere, when it takes more than a minute or a GiB of memory, or when the answer",
            "is another than the claim says: one sentence, or the work done.",
            "",
            *table(outcomes),
            "",
            *(["## Broken", "", *faults, ""] if faults else []),
            f"Command: `{command}` ({seconds / 60:.1f} minutes)  ",
            f"Machine: {platform.system()} {platform.machine()}, one process, 1 thread  ",
            f"Python {platform.python_version()}  ",
            f"Date: {date.today().isoformat()}",
            "",
        ]
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Try a collection of attacks and count by claim what held.")
    parser.add_argument("--only", default="", help="only try attacks with this word in their claim or name")
    parser.add_argument("--every", type=int, default=1, help="only try every N-th attack")
    parser.add_argument("--output", type=Path, default=None, help="page to write; results/attacks.md for all attacks")
    options = parser.parse_args(arguments)
    if sys.platform == "linux":
        limit_memory()
    chosen = [one for one in every_attack() if options.only in f"{one.claim} {one.name}"][:: options.every]
    folder, began, outcomes = Path(tempfile.mkdtemp(prefix="dovetail-attacks-")), time.monotonic(), []
    try:
        for outcome in run(chosen, folder):
            outcomes.append(outcome)
            if outcome.why:
                print(f"BROKEN {outcome.attack.claim}: {outcome.attack.name}: {outcome.why}"[:400], flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    output = options.output or (None if options.only else RESULTS)
    if output is not None:
        words = " ".join(["python -m benchmarks.attacks", *arguments])
        output.write_text(page(outcomes, words, time.monotonic() - began), encoding="utf-8")
    print("\n".join(table(outcomes)))
    broken = sum(bool(one.why) for one in outcomes)
    print(f"{len(outcomes)} tried, {broken} broken, {sum(one.traceback for one in outcomes)} tracebacks")
    return 1 if broken or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
