"""Kill `dovetail pretrain` repeatedly, resume it, and compare the final weights bit for bit.

`python -m benchmarks.faults` trains a tiny model once without interruption, then `--runs` times with SIGKILL at
seeded moments: at any time after the process starts, at any time of training, and in the middle of writing a
checkpoint. Every run is resumed until it is finished. The program exits with 1 unless all runs end with the same bits.

Every process is a fork of this one, which has imported everything and computed nothing, so that kills fall on training
rather than on imports.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image

import dovetail.run.pretrain  # noqa: F401 - imported before the forks
from dovetail.cli import main as run_command

if TYPE_CHECKING:
    from benchmarks.loader_faults import LoaderCase

Moment = Literal["any time", "training", "checkpoint write"]
MOMENTS: tuple[Moment, ...] = ("checkpoint write", "training", "any time")
STEPS = 16
MAX_STARTS = 12
MAX_TRIES = 5
LIMIT_SECONDS = 300.0
POLL_SECONDS = 0.0005

OPTIONS = (
    *("--model", "timm/test_resnet+fpn", "--method", "decon-sl", "--image-size", "64", "--batch-size", "4"),
    *("--max-steps", str(STEPS), "--save-every-minutes", "0", "--log-every-steps", "1", "--report-every-minutes", "0"),
    *("--precision", "32-true", "--accelerator", "cpu", "--recipe.hidden", "64", "--recipe.dim", "16"),
    *("--recipe.prototypes", "8", "--recipe.decoder-grid", "8"),
)


@dataclass
class Case:
    """One run that was killed and resumed.

    Attributes:
        number: Of the run; seeds its moments.
        kills: When each SIGKILL came, and the newest step in the log then.
        torn_writes: Kills that left half a checkpoint behind.
        starts: Processes until the run was done.
        equal: Whether its weights are those of the uninterrupted run.
    """

    number: int
    kills: list[str] = field(default_factory=list)
    torn_writes: int = 0
    starts: int = 0
    equal: bool = False


@dataclass(frozen=True)
class Reference:
    """The uninterrupted run: digests of its exported files, and its times in seconds since its process started."""

    digests: dict[str, str]
    training_began: float
    ended: float


def photographs(folder: Path, count: int = 18) -> Path:
    """Return `folder` with small photographs of coloured blots."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((80, 60), Image.Resampling.BICUBIC).save(folder / f"{index:02d}.jpg")
    return folder


def start(data: Path, out: Path, workers: int, *more: str) -> BaseProcess:
    """Start or resume the run in `out`, whichever it needs; `more` are options of its start."""
    resumable = (out / "config.yaml").is_file()
    options = ("--resume",) if resumable else ("--data", str(data), *OPTIONS, *more)
    command = ["pretrain", "--out", str(out), "--workers", str(workers), *options]
    process = multiprocessing.get_context("fork").Process(target=run_logged, args=(command, log_of(out)))
    process.start()
    return process


def run_logged(command: list[str], log: Path) -> None:
    """Run the command line with both outputs going to `log`."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    run_command(command)


def log_of(out: Path) -> Path:
    """Return where a run's outputs go."""
    return out.parent / f"{out.name}.log"


def digests_of(out: Path) -> dict[str, str]:
    """Return the SHA-256 of every exported file of weights."""
    files = sorted((out / "exported").glob("*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def leftovers(out: Path) -> list[Path]:
    """Return the checkpoints that are being written, or were when the process was killed."""
    return list((out / "checkpoints").glob("last.ckpt.*.tmp"))


def newest_step(out: Path) -> int:
    """Return the number of lines in the log: one a step."""
    metrics = out / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def watch(process: BaseProcess, since: float) -> Iterator[float]:
    """Yield the seconds since `since`, often, until the process ends.

    Raises:
        TimeoutError: When it hangs; it is killed first.
    """
    while process.is_alive():
        elapsed = time.monotonic() - since
        if elapsed > LIMIT_SECONDS:
            process.kill()
            raise TimeoutError(f"A run took more than {LIMIT_SECONDS:.0f} seconds.")
        yield elapsed
        time.sleep(POLL_SECONDS)


def uninterrupted(data: Path, out: Path) -> Reference:
    """Run to the end without a fault."""
    since, began = time.monotonic(), 0.0
    process = start(data, out, workers=0)
    for elapsed in watch(process, since):
        if began == 0 and newest_step(out) > 0:
            began = elapsed
    if process.exitcode != 0:
        raise RuntimeError(log_of(out).read_text())
    return Reference(digests_of(out), began, time.monotonic() - since)


def kill_at(
    moment: Moment, process: BaseProcess, out: Path, rng: random.Random, whole: Reference, *, sooner: float
) -> bool:
    """Kill the process at the moment, in `sooner` of the time; return whether it still ran then."""
    since, began = time.monotonic(), None
    before = newest_step(out)
    span = whole.ended - whole.training_began
    share, writes = rng.random() * sooner, rng.randint(1, STEPS // 2)
    delay = rng.random() * 0.004  # a write of this size takes some milliseconds
    for elapsed in watch(process, since):
        if moment == "any time":
            due = elapsed >= share * whole.ended
        elif moment == "training":
            if began is None and newest_step(out) > before:
                began = elapsed
            due = began is not None and elapsed - began >= share * span
        else:
            began = began if began is not None or newest_step(out) < before + writes else elapsed
            due = began is not None and bool(leftovers(out))
        if due:
            if moment == "checkpoint write":
                time.sleep(delay)
            process.kill()
            break
    process.join()
    return process.exitcode == -signal.SIGKILL


def faulted(number: int, data: Path, out: Path, whole: Reference, seed: int) -> Case:
    """Run with one to three kills, resuming after each, and compare the end; anew where it ended before the first.

    Moments are times of the uninterrupted run, and the machine may have become faster since: each try kills sooner.
    """
    rng = random.Random(seed * 1_000_003 + number)
    for tries in range(MAX_TRIES):
        shutil.rmtree(out, ignore_errors=True)
        case = attempt(number, data, out, whole, rng, sooner=0.5**tries)
        if case.kills:
            break
    return case


def attempt(number: int, data: Path, out: Path, whole: Reference, rng: random.Random, *, sooner: float) -> Case:
    """Do one run for `faulted`."""
    case = Case(number)
    first = MOMENTS[number % len(MOMENTS)]
    moments = [first, *rng.choices(MOMENTS, k=rng.choice((0, 1, 1, 2)))]
    done = False
    for moment in moments:
        if done:
            break
        case.starts += 1
        process = start(data, out, workers=rng.choice((0, 0, 1)))
        if kill_at(moment, process, out, rng, whole, sooner=sooner):
            torn = bool(leftovers(out))
            case.torn_writes += torn
            case.kills.append(f"{moment}, step {newest_step(out)}{' (half written)' if torn else ''}")
        done = process.exitcode == 0
    while not done and case.starts < MAX_STARTS:
        case.starts += 1
        process = start(data, out, workers=0)
        for _ in watch(process, time.monotonic()):
            pass
        done = process.exitcode == 0
    case.equal = digests_of(out) == whole.digests
    return case


def table(cases: list[Case]) -> list[str]:
    """Return the lines of the table, one a run."""
    lines = ["| run | killed at | processes | same bits |", "|---:|---|---:|---|"]
    lines += [
        f"| {case.number + 1} | {'; '.join(case.kills) or 'ended before'} | {case.starts} "
        f"| {'yes' if case.equal else 'NO'} |"
        for case in cases
    ]
    return lines


def report(cases: list[Case], command: str, loading: Sequence[str] = ()) -> str:
    """Return the whole page, with the lines on faults of loading."""
    kills = sum(len(case.kills) for case in cases)
    torn = sum(case.torn_writes for case in cases)
    same, killed = sum(case.equal for case in cases), sum(bool(case.kills) for case in cases)
    return "\n".join(
        [
            "# Runs that are killed and resumed",
            "",
            f"`dovetail pretrain`, {STEPS} steps, a checkpoint after every one, killed by SIGKILL at seeded moments",
            "and resumed until done. The exported files are compared byte for byte with those of an uninterrupted",
            "run.",
            "",
            f"**{same} of {len(cases)} runs end in the same bits**, after {kills} kills in {killed} of them;",
            f"{torn} kills left a checkpoint half written.",
            "",
            *table(cases),
            "",
            *loading,
            f"Command: `{command}`  ",
            f"Machine: {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, 1 thread  ",
            f"Versions: Python {platform.python_version()}, torch {torch.__version__}  ",
            f"Date: {date.today().isoformat()}",
            "",
        ]
    )


def run(runs: int, seed: int, folder: Path) -> tuple[list[Case], list[LoaderCase]]:
    """Do the uninterrupted run, `runs` faulted ones, and those with faults of loading in `folder`."""
    from benchmarks.loader_faults import loader_cases  # which uses this module

    data = photographs(folder / "photographs")
    whole = uninterrupted(data, folder / "whole")
    print(f"uninterrupted: {whole.ended:.1f} s, training from {whole.training_began:.1f} s", flush=True)
    cases = []
    for number in range(runs):
        out = folder / f"run-{number:02d}"
        case = faulted(number, data, out, whole, seed)
        cases.append(case)
        print(table([case])[-1], flush=True)
        if case.equal:
            shutil.rmtree(out)
    loading = loader_cases(data, folder, whole.digests)
    return cases, loading


def main(arguments: list[str]) -> int:
    from benchmarks.loader_faults import lines_of  # which uses this module

    parser = argparse.ArgumentParser(
        description="Kill runs at random moments, resume them, and compare their weights bit for bit."
    )
    parser.add_argument("--runs", type=int, default=20, help="number of runs to kill")
    parser.add_argument("--seed", type=int, default=0, help="seed for the moments of the kills")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "faults.md")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="dovetail-faults-"))
    cases, loading = run(options.runs, options.seed, folder)
    held = all(case.equal for case in cases) and all(case.held for case in loading)
    if held:
        shutil.rmtree(folder)
    else:
        print(f"Runs that differ are kept in {folder}.", file=sys.stderr)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    command, loading_lines = " ".join(["python -m benchmarks.faults", *arguments]), lines_of(loading)
    print("\n".join(loading_lines))
    options.output.write_text(report(cases, command, loading_lines), encoding="utf-8")
    return 0 if cases and held and all(case.kills for case in cases) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
