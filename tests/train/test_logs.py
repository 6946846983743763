"""The log's files, and Lightning's silence."""

from __future__ import annotations

import errno
import json
import logging
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers.logger import DummyLogger

from dovetail.report.history import read_history
from dovetail.train.interrupts import StopRequests, stop_signals
from dovetail.train.logs import Reading, RunLog, drop_readings_after, quiet_lightning


def reading(step: int) -> Reading:
    return Reading(
        step=step,
        epoch=1,
        loss=2.5,
        parts={"encoder/slot": 1.5},
        weights={"encoder": 0.5},
        lr=0.1,
        weight_decay=1e-5,
        teacher_momentum=None,
        grad_norm=3.0,
        images_per_second=40.0,
        data_wait=0.25,
        effective_rank={"c5": 7.0},
        spread={"c5": 0.4},
    )


def test_readings_go_to_both_files_and_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, total_steps=100, active=True).opened(0) as run_log:
        run_log.advance(20)
        run_log.write(reading(20), seconds_left=80)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == vars(reading(20))
    line = "step 20/100  epoch 1  loss 2.5000  lr 0.1  40.0 img/s  waiting for data 25%  left 0:01:20"
    assert line in (tmp_path / "train.log").read_text()
    assert capsys.readouterr().err == f"{line}\n"
    assert not logging.getLogger("dovetail").handlers


def test_a_resumed_run_tells_what_its_last_speed_leaves(tmp_path: Path) -> None:
    run_log = RunLog(tmp_path, total_steps=1100, active=True)
    assert run_log.resuming(7, images_per_step=32) == "Resuming from step 7 of 1,100."  # no line of the log yet
    lines = [{"step": 10, "images_per_second": 4.0}, {"step": 20, "images_per_second": 16.0}, {"step": 21}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    assert run_log.resuming(20, images_per_step=32) == (
        "Resuming from step 20 of 1,100; at 16.0 img/s as before, the other 1,080 steps take about 36 min."
    )
    assert run_log.resuming(1099, images_per_step=32).endswith("as before, the last step takes about 2 s.")
    assert run_log.resuming(1100, images_per_step=32) == "Resuming from step 1,100 of 1,100."


def test_the_bar_names_the_step_of_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with RunLog(tmp_path, total_steps=100, active=True).opened(0) as run_log:
        assert run_log._bar is not None
        (task,) = run_log._bar.tasks
        run_log.write_first(1, loss=3.25, seconds=0.5, next_line=20)
        assert task.fields["status"] == "loss 3.2500 at step 1"
        run_log.write(reading(20), seconds_left=80)
        run_log.advance(27)
        assert (task.completed, task.fields["status"][:22]) == (27, "loss 2.5000 at step 20")


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run", total_steps=100, active=False).opened(0) as run_log:
        run_log.advance(20)
        run_log.write(reading(20), seconds_left=80)
    assert not (tmp_path / "run").exists()


class Unreachable(DummyLogger):
    """A logger whose server is gone for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int | None] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.steps.append(step)
        if step != 60:
            raise ConnectionError("no such host")


def test_a_logger_that_fails_is_told_once_and_asked_again(tmp_path: Path) -> None:
    loggers = [Unreachable(), Unreachable()]
    with RunLog(tmp_path, total_steps=100, active=True, loggers=loggers).opened(0) as run_log:
        for step in (20, 40, 60):
            run_log.write(reading(step), seconds_left=80)
    assert [logger.steps for logger in loggers] == [[20, 40, 60]] * 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    sentence = "The logger Unreachable failed after step 20 (ConnectionError: no such host); the run continues"
    assert (tmp_path / "train.log").read_text().count(sentence) == len(loggers)


def test_a_full_disk_under_the_metrics_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, logger = Path.open, Unreachable()

    def full(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "metrics.jsonl":
            with whole(path, "a") as file:
                file.write('{"step": 20, "ep')
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, *arguments, **options)

    with RunLog(tmp_path, total_steps=100, active=True, loggers=[logger]).opened(0) as run_log:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", full)
            run_log.write(reading(20), seconds_left=80)
            run_log.write(reading(40), seconds_left=80)
        run_log.write(reading(60), seconds_left=80)
    assert logger.steps == [20, 40, 60]
    assert [one["step"] for one in read_history(tmp_path).readings] == [60]
    assert (tmp_path / "train.log").read_text().count("metrics.jsonl cannot be written after step") == 1


def test_scalars_have_one_name_each() -> None:
    flat = reading(3).flat()
    assert flat["parts/encoder/slot"] == 1.5
    assert flat["effective_rank/c5"] == 7.0
    assert "teacher_momentum" not in flat
    assert all(isinstance(value, (int, float)) for value in flat.values())


def test_readings_past_the_step_and_a_torn_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": step}) for step in (2, 4, 6)]
    path.write_text("\n".join(whole) + '\n{"step": 1, "lo')
    drop_readings_after(path, 4)
    assert path.read_text().splitlines() == whole[:2]
    drop_readings_after(tmp_path / "missing", 4)


def test_only_idle_remarks_are_silenced(caplog: pytest.LogCaptureFixture) -> None:
    lightning = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with quiet_lightning():
        lightning.warning("GPU available: False, used: False")
        lightning.warning("Something that matters")
        warnings.warn("GPU available but not used.", UserWarning, stacklevel=1)
        with pytest.warns(UserWarning, match="that matters"):
            warnings.warn("Something that matters", UserWarning, stacklevel=1)
    assert "GPU available" not in caplog.text
    assert "Something that matters" in caplog.text
    lightning.warning("GPU available: now heard")
    assert "now heard" in caplog.text


def test_stop_signals_include_slurms_only_in_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    everywhere = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    assert stop_signals() == everywhere
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert stop_signals() == (*everywhere, signal.SIGUSR1)


def test_a_second_ctrl_c_interrupts_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    stops = StopRequests()
    before = signal.getsignal(signal.SIGINT)
    stops.listen(signal.SIGINT)
    try:
        signal.raise_signal(signal.SIGINT)
        assert stops.received == signal.SIGINT
        told = capfd.readouterr().err  # before the step ends
        assert told == "\nCtrl-C (SIGINT): stopping after this step; press Ctrl-C again to stop now.\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        stops.restore()
    assert signal.getsignal(signal.SIGINT) is before
