"""Faults of loading, for `benchmarks.faults`: killed processes, data that go or hang, no memory.

The runs save no checkpoint by the clock, so that the only one is what a run writes because of the fault: "steps lost"
are those in the log that it does not have.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import dovetail.data.sources
from benchmarks.faults import digests_of, newest_step, start, watch
from dovetail.data.reading.decode import LazyImage, open_file
from dovetail.train.checkpoints import read

AT_STEP = 4
STILL_SECONDS = 2.0  # without a step, after which data are known to hang
ANSWERED_SECONDS = 5.0
ASKED = "reading"  # a file beside the data: what reading shall do


@dataclass(frozen=True)
class LoaderCase:
    """What came of one fault.

    Attributes:
        fault: In words.
        code: The process's exit code.
        seconds: From the fault to the end of the process, where that is the answer; None where the run goes on.
        lost: Steps that were logged and that no checkpoint has.
        equal: Whether the weights at the end, after resuming, are those of the uninterrupted run; None where images
            were left out, so that they are not.
        held: Whether all is as it has to be.
    """

    fault: str
    code: int
    seconds: float | None
    lost: int
    equal: bool | None
    held: bool


def faulty(folder: Path) -> Callable[[str, int], LazyImage]:
    """Return what reads an image, and does what the file `ASKED` says instead."""

    def opened(path: str, channels: int) -> LazyImage:
        asked = (folder / ASKED).read_text() if (folder / ASKED).exists() else ""
        if asked == "hang":
            time.sleep(3600)
        if asked == "memory" and path.endswith(("0.jpg", "5.jpg")):
            raise MemoryError
        return open_file(path, channels)

    return opened


def loader_cases(data: Path, folder: Path, whole: dict[str, str]) -> list[LoaderCase]:
    """Try every fault once, the signal five times.

    Args:
        data: Images.
        folder: For runs.
        whole: Digests of the uninterrupted run.
    """
    dovetail.data.sources.open_file = faulty(folder)  # type: ignore[assignment]
    cases = [killed(data, folder, whole, times=times) for times in (1, 1000)]
    cases += [deleted(data, folder), without_memory(data, folder)]
    return cases + [hanging(data, folder, whole, number) for number in range(5)]


def begun(data: Path, out: Path, *, workers: int = 1) -> BaseProcess:
    """Start a run and return it once it has done some steps."""
    process = start(data, out, workers, "--save-every-minutes", "60")
    for _ in watch(process, time.monotonic()):
        if newest_step(out) >= AT_STEP:
            break
    return process


def killed(data: Path, folder: Path, whole: dict[str, str], *, times: int) -> LoaderCase:
    """Kill the loading processes so many times, as a system that runs out of memory does."""
    out = folder / f"killed-{times}"
    process = begun(data, out)
    since, rounds = time.monotonic(), 0
    for _ in watch(process, since):
        if rounds < times:
            for child in children(process):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            rounds += 1
            time.sleep(0.02)
    code, lost = ended(process), steps_lost(out)
    equal = resumed(data, out) == whole
    name = "a loading process is killed (SIGKILL)" if times == 1 else "every loading process is killed, again and again"
    return LoaderCase(name, code, None, lost, equal, lost == 0 and equal)


def deleted(data: Path, folder: Path) -> LoaderCase:
    """Take the data away, and bring them back for the run that goes on."""
    out, away = folder / "deleted", folder / "away"
    process = begun(data, out)
    data.rename(away)
    since = time.monotonic()
    for _ in watch(process, since):
        pass
    seconds, code, lost = time.monotonic() - since, ended(process), steps_lost(out)
    away.rename(data)
    finished = bool(resumed(data, out))
    return LoaderCase("the data are deleted", code, seconds, lost, None, lost == 0 and code == 2 and finished)


def without_memory(data: Path, folder: Path) -> LoaderCase:
    """Let some images raise `MemoryError`."""
    out = folder / "memory"
    process = begun(data, out)
    (folder / ASKED).write_text("memory")
    for _ in watch(process, time.monotonic()):
        pass
    (folder / ASKED).unlink()
    named = (out / "skipped.jsonl").is_file()
    code, lost = ended(process), steps_lost(out)
    return LoaderCase("images raise MemoryError", code, None, lost, None, code == 0 and named and lost == 0)


def hanging(data: Path, folder: Path, whole: dict[str, str], number: int) -> LoaderCase:
    """Let reading hang, and ask the run to stop by SIGTERM."""
    out = folder / f"hanging-{number}"
    process = begun(data, out, workers=number % 2)
    (folder / ASKED).write_text("hang")
    last, since = newest_step(out), time.monotonic()
    while time.monotonic() - since < STILL_SECONDS:
        if newest_step(out) != last:
            last, since = newest_step(out), time.monotonic()
        time.sleep(0.01)
    asked = time.monotonic()
    os.kill(process.pid or 0, signal.SIGTERM)
    for _ in watch(process, asked):
        pass
    seconds, code, lost = time.monotonic() - asked, ended(process), steps_lost(out)
    (folder / ASKED).unlink()
    equal = resumed(data, out) == whole
    held = seconds <= ANSWERED_SECONDS and code == 128 + signal.SIGTERM and lost == 0 and equal
    return LoaderCase("SIGTERM while reading hangs", code, seconds, lost, equal, held)


def children(process: BaseProcess) -> list[int]:
    """Return the processes that a process has started."""
    with suppress(OSError):
        return [int(one) for one in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    return []


def ended(process: BaseProcess) -> int:
    """Return the exit code of a process that has ended."""
    process.join()
    return process.exitcode or 0


def steps_lost(out: Path) -> int:
    """Return how many logged steps no checkpoint has; 0 for a run that has ended."""
    if digests_of(out):
        return 0
    last = out / "checkpoints" / "last.ckpt"
    return newest_step(out) - (int(read(last)["step"]) if last.exists() else 0)


def resumed(data: Path, out: Path) -> dict[str, str]:
    """Go on with a run until its end, and return the digests of its weights; empty where it did not end."""
    for _ in range(3):
        if digests_of(out):
            break
        process = start(data, out, 0)
        for _ in watch(process, time.monotonic()):
            pass
        process.join()
    found = digests_of(out)
    shutil.rmtree(out)
    return found


def lines_of(cases: list[LoaderCase]) -> list[str]:
    """Return the lines of the table."""
    slowest = max((case.seconds or 0.0 for case in cases if case.fault.startswith("SIGTERM")), default=0.0)
    lines = [
        "## Faults of loading",
        "",
        f"**{sum(case.held for case in cases)} of {len(cases)} held**; SIGTERM while reading hangs was answered within",
        f"{slowest:.1f} s. These runs save no checkpoint by the clock: the only one is what a run writes because of",
        "the fault.",
        "",
        "| fault | exit code | ended after | steps lost | same bits after resuming |",
        "|---|---:|---:|---:|---|",
    ]
    for case in cases:
        after = "-" if case.seconds is None else f"{case.seconds:.1f} s"
        same = {True: "yes", False: "NO", None: "images were left out"}[case.equal]
        lines.append(f"| {case.fault} | {case.code} | {after} | {case.lost} | {same} |")
    return [*lines, ""]
