"""Decoders that hang or crash, runs that stop in the middle of an image: nothing hangs, nothing else is lost."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from PIL import Image

from dovetail.data.loader import ViewDataset, ViewLoader
from dovetail.data.order import StepSampler
from dovetail.data.reading.deadline import deadline
from dovetail.data.reading.decode import LazyImage, UnreadableError, open_bytes
from dovetail.data.reading.skipped import SkippedLog
from dovetail.data.reading.watch import next_of
from dovetail.data.sources import ImageSource
from dovetail.errors import DovetailError, StoppedWaiting
from dovetail.train.interrupts import StopRequests
from dovetail.views.plan import ViewPlan, ViewSpec
from tests.data.fuzz import encoded, smooth

PLAN = ViewPlan(views=(ViewSpec(size_px=16),))


class Stuck(ImageSource):
    """One image whose decoder never comes back to Python's signals."""

    @property
    def num_images(self) -> int:
        return 8

    def name(self, index: int) -> str:
        return f"{index}"

    def open(self, index: int, channels: int) -> LazyImage:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        while True:
            time.sleep(1)


class Dying(Stuck):
    """An image whose decoder takes the process with it."""

    def open(self, index: int, channels: int) -> LazyImage:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def hang() -> None:
    """Make one call in C, during which Python handles no signal and runs no other thread."""
    mutex = ctypes.create_string_buffer(256)
    lock = ctypes.PyDLL(None).pthread_mutex_lock  # PyDLL keeps the interpreter's lock
    lock(mutex)
    lock(mutex)  # waits for ever on Linux, and takes no processor time
    sum(range(10**15))


class Hopeless(ImageSource):
    """Twelve images; what decodes some never comes back, or takes the process with it."""

    def __init__(self, *, hang: int, crash: int) -> None:
        self.hang, self.crash = hang, crash

    @property
    def num_images(self) -> int:
        return 12

    def name(self, index: int) -> str:
        return f"{index}.jpg"

    def open(self, index: int, channels: int) -> LazyImage:
        if index == self.hang:
            hang()
        if index == self.crash:
            ctypes.string_at(0)
        return open_bytes(encoded(Image.fromarray(smooth(24, 32, seed=index)), "PNG"), channels)


@pytest.mark.parametrize(("workers", "crash", "pause"), [(0, 7, 0.0), (1, 7, 0.0), (1, 7, 1.0), (2, -1, 0.0)])
def test_a_decoder_that_hangs_or_crashes_costs_its_photograph_alone(
    tmp_path: Path, workers: int, crash: int, pause: float
) -> None:
    """After a pause for training, a process is stuck that still has to hand over batches from before."""
    log = tmp_path / "skipped.jsonl"
    sampler = StepSampler(12, 4, seed=1, total_steps=6)  # 7 in the first batch, 3 in the third
    loader = ViewLoader(
        *(ViewDataset(Hopeless(hang=3, crash=crash), PLAN, seed=0, image_seconds=1.5), sampler),
        plan=PLAN,
        num_workers=workers,
        skipped=SkippedLog(log, 12),
    )
    stops = StopRequests()
    stops.listen(signal.SIGTERM)  # as in training; loading processes inherit it
    torch.manual_seed(5)
    try:
        batches = []
        for batch in loader:
            batches.append(batch)
            time.sleep(pause)
    finally:
        stops.restore()
    assert stops.received is None
    drawn = torch.rand(1)
    assert drawn.equal(torch.rand(1, generator=torch.Generator().manual_seed(5)))
    assert [batch.index.tolist() for batch in batches] == [[index for _, index in keys] for keys in sampler]
    for batch in batches:
        assert (batch.used != batch.index).equal((batch.index == 3) | (batch.index == crash))
    reasons = {json.loads(line)["path"]: json.loads(line)["reason"] for line in log.read_text().splitlines()}
    assert reasons.pop("3.jpg") == "it could not be read within 1.5 seconds"
    assert reasons == ({f"{crash}.jpg": "its decoder crashed (SIGSEGV)"} if crash >= 0 else {})


@pytest.mark.parametrize(
    ("source", "batch_seconds", "sentence"),
    [
        (Stuck(), 3.0, "returned no batch for"),
        (Dying(), 600.0, "8 of 8 images cannot be read.*two workers were killed"),
    ],
)
def test_a_lost_worker_ends_the_run_with_a_sentence(source: ImageSource, batch_seconds: float, sentence: str) -> None:
    sampler = StepSampler(8, 4, seed=0, total_steps=2, start_step=0, rank=0, world_size=1, micro_batches=1)
    loader = ViewLoader(
        *(ViewDataset(source, PLAN, seed=0), sampler),
        plan=PLAN,
        num_workers=1,
        skipped=SkippedLog(None, 8),
        batch_seconds=batch_seconds,
    )
    with pytest.raises(DovetailError, match=sentence) as raised:
        next(iter(loader))
    assert "\n" not in str(raised.value)
    assert_no_worker_is_left()  # although the error is kept, and with it torch's iterator


class Killed(Hopeless):
    """Twelve images; the process that reads number 3 is killed, the first times or always, as one short of memory."""

    def __init__(self, folder: Path, *, times: int) -> None:
        super().__init__(hang=-1, crash=-1)
        self.folder, self.times = folder, times

    def open(self, index: int, channels: int) -> LazyImage:
        if index == 3 and len(list(self.folder.iterdir())) < self.times:
            (self.folder / str(time.monotonic_ns())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open(index, channels)


@pytest.mark.parametrize(("workers", "times"), [(0, 1), (2, 1), (0, 100), (2, 100)])
def test_a_killed_process_costs_an_image_at_the_second_time_alone(tmp_path: Path, workers: int, times: int) -> None:
    (tmp_path / "kills").mkdir()
    source, log = Killed(tmp_path / "kills", times=times), tmp_path / "skipped.jsonl"
    loader = ViewLoader(
        *(ViewDataset(source, PLAN, seed=0), StepSampler(12, 4, seed=1, total_steps=6)),
        plan=PLAN,
        num_workers=workers,
        skipped=SkippedLog(log, 12),
    )
    batches = list(loader)
    assert len(batches) == 6
    given_up = times > 1
    for batch in batches:
        assert (batch.used != batch.index).equal((batch.index == 3) & given_up)
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    assert [line["path"] for line in lines] == (["3.jpg"] if given_up else [])
    assert all("two workers were killed while reading it (SIGKILL)" in line["reason"] for line in lines)


def test_a_loader_that_is_asked_to_stop_does_not_wait_on() -> None:
    loader = ViewLoader(
        *(ViewDataset(Stuck(), PLAN, seed=0), StepSampler(8, 4, seed=0, total_steps=2)),
        plan=PLAN,
        num_workers=2,
        skipped=SkippedLog(None, 8),
        batch_seconds=600.0,
    )
    asked = iter([False, True])
    loader.stop_when(lambda: next(asked))
    with pytest.raises(StoppedWaiting):
        next(iter(loader))
    assert next(asked, None) is None  # after two polls, and not after all that a batch may take
    assert_no_worker_is_left()


def assert_no_worker_is_left() -> None:
    for child in multiprocessing.active_children():  # that was killed, and may need a moment on a busy machine
        child.join(60)
    assert not multiprocessing.active_children()


class Asked(Hopeless):
    """Twelve images; while number 3 is read for the first times, its process is asked to end, as all of a job."""

    def __init__(self, notes: Path, number: int, times: int) -> None:
        super().__init__(hang=-1, crash=-1)
        self.notes, self.number, self.times = notes, number, times

    def open(self, index: int, channels: int) -> LazyImage:
        if index == 3 and len(list(self.notes.iterdir())) < self.times:
            (self.notes / str(os.getpid())).touch()
            # Not by its parent, of which torch's processes take it as a matter of course.
            subprocess.run(["kill", f"-{self.number}", str(os.getpid())], check=True)
            time.sleep(0.2)
        return super().open(index, channels)


def asked(notes: Path, number: int, times: int, workers: int) -> ViewLoader:
    notes.mkdir()
    return ViewLoader(
        ViewDataset(Asked(notes, number, times), PLAN, seed=0, image_seconds=60.0),
        StepSampler(12, 4, seed=0, total_steps=6),
        plan=PLAN,
        num_workers=workers,
        skipped=SkippedLog(None, 12),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_request_to_the_whole_job_costs_no_photograph(tmp_path: Path, workers: int, number: signal.Signals) -> None:
    """The training process has to go on for some steps, until all agree on where to stop."""
    stops = StopRequests()
    stops.listen(signal.SIGTERM, signal.SIGUSR1)  # as in training; loading processes inherit it
    try:
        plain = list(asked(tmp_path / "plain", number, 0, workers))
        notes = tmp_path / "asked"
        batches = list(asked(notes, number, 1, workers))
    finally:
        stops.restore()
    assert len(list(notes.iterdir())) == 1
    assert [batch.index.tolist() for batch in batches] == [batch.index.tolist() for batch in plain]
    assert all(batch.used.equal(batch.index) for batch in batches)
    assert all(torch.equal(a.crops[0], b.crops[0]) for a, b in zip(batches, plain, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_who_asks_again_and_again_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match="A data loading worker died"):
        list(asked(tmp_path / "asked", signal.SIGTERM, 100, 1))


def test_a_process_that_ends_takes_its_batches_with_it() -> None:
    def gone() -> Iterator[int]:
        yield 1
        raise EOFError

    ended = multiprocessing.get_context("fork").Process(target=os._exit, args=(3,))
    batches = gone()
    assert next_of(batches, [ended]) == 1
    ended.start()
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid \d+\) ended"):
        next_of(batches, [ended])
    own = gone()
    assert next_of(own, []) == 1
    with pytest.raises(EOFError):  # it is the data's own
        next_of(own, [])


class Slow(Hopeless):
    """Images of which one tells that it is read, and takes a while."""

    def __init__(self, told: Connection, *, hang: int, seconds: float) -> None:
        super().__init__(hang=hang, crash=-1)
        self.told, self.seconds = told, seconds

    def open(self, index: int, channels: int) -> LazyImage:
        if index == 3:
            self.told.send(os.getpid())  # cannot be pickled, so no process can be started anew with it
            time.sleep(self.seconds)
        return super().open(index, channels)


def load_all(told: Connection, workers: int, hang: int) -> None:
    """In a process that leads its group: load one epoch, then tell how many images were lost."""
    os.setsid()
    told.send(os.getpid())
    loader = ViewLoader(
        ViewDataset(Slow(told, hang=hang, seconds=0.4), PLAN, seed=0, image_seconds=3.0),
        StepSampler(12, 4, seed=0, total_steps=3),
        plan=PLAN,
        num_workers=workers,
        skipped=SkippedLog(None, 12),
        batch_seconds=5.0,
    )
    told.send(sum(int((batch.used != batch.index).sum()) for batch in loader))


@contextmanager
def loading(workers: int, *, hang: int = -1, daemon: bool = False) -> Iterator[tuple[BaseProcess, Connection]]:
    """Run `load_all` beside; yield its process, and what it says from then on."""
    context = multiprocessing.get_context("fork")
    heard, told = context.Pipe(duplex=False)
    process = context.Process(target=load_all, args=(told, workers, hang), daemon=daemon)
    process.start()
    told.close()  # so that a process that ends early ends the wait for it
    try:
        assert heard.recv() == process.pid
        yield process, heard
    finally:
        process.kill()
        process.join()
        heard.close()


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("daemon", [False, True])
def test_without_workers_one_process_loads_where_one_may_start(daemon: bool) -> None:
    """The processes of a `multiprocessing.Pool` are daemons, and load by themselves."""
    with loading(0, daemon=daemon) as (process, heard):
        assert (heard.recv() == process.pid) is daemon
        assert heard.recv() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_was_suspended_loses_nothing(workers: int) -> None:
    """All its processes stop for longer than an image may take, as a scheduler or Ctrl-Z stops them."""
    with loading(workers) as (process, heard):
        assert process.pid is not None
        assert heard.recv() != process.pid
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(5.5)
        os.killpg(process.pid, signal.SIGCONT)
        assert heard.poll(1500)
        assert heard.recv() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process can ask for it")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_decoder_that_hangs_ends_with_a_run_that_is_killed(workers: int) -> None:
    with loading(workers, hang=3) as (process, heard):
        stuck = heard.recv()
        time.sleep(0.6)
        assert running(stuck)
        process.kill()
        until = time.monotonic() + 1500
        while running(stuck) and time.monotonic() < until:
            time.sleep(0.05)
        ended = not running(stuck)
        with suppress(ProcessLookupError):
            os.kill(stuck, signal.SIGKILL)
        assert ended


def running(pid: int) -> bool:
    """Whether a process is there and has not ended; nobody may have asked yet how it did."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_deadline_ends_what_waits_and_gives_the_timer_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(UnreadableError, match=r"within 0\.1 seconds"), deadline(0.1):
        time.sleep(1500)
    assert signal.getsignal(signal.SIGALRM) is before


def test_a_timer_that_ran_before_goes_on() -> None:
    came: list[int] = []
    outer = signal.signal(signal.SIGALRM, lambda number, frame: came.append(number))
    kept = signal.setitimer(signal.ITIMER_REAL, 1000.0)
    try:
        with deadline(5000.0):
            pass
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] < 1000
        signal.raise_signal(signal.SIGALRM)
        assert came == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, *kept)
        signal.signal(signal.SIGALRM, outer)
