"""A table goes on where it stopped, and takes no number from other options or other data."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dovetail.downstream.finished import TASK, WEIGHTS
from dovetail.downstream.options import FinetuneClassifyOptions
from dovetail.downstream.start import Start
from dovetail.downstream.table.ledger import CANDIDATES, KEPT, TRIALS, Curve, Fitted, mark_of
from dovetail.downstream.table.results import Row, one_value
from dovetail.downstream.table.trials import Grid, Trial, run_trials
from dovetail.errors import DovetailError, Interrupted


class Fitter:
    """Stands for fine-tuning: its score tells the trial; it stops after `most` trials as if it was killed."""

    def __init__(self, out: Path, most: int = 100, gains: Mapping[str, float] | None = None) -> None:
        self.out, self.most, self.gains = out, most, gains or {"all": 0.5}
        self.done: list[tuple[str, float, int]] = []

    def __call__(self, trial: Trial, keep_in: Path | None) -> Fitted:
        if len(self.done) == self.most:
            raise KeyboardInterrupt
        self.done.append((trial.start, trial.fraction, trial.seed))
        if keep_in is not None:
            keep_in.mkdir(parents=True)
            for name in (WEIGHTS, TASK):
                (keep_in / name).write_text(trial.start)
        score = 0.1 * trial.seed + 0.01 * len(trial.indices) + self.gains.get(trial.start, 0.0)
        return Fitted({"top1": one_value(score, (score - 0.05, score + 0.05))}, {"of": trial.start})


def grid(starts: Sequence[Start] = ("random", "all"), fractions: Sequence[float] = (0.5, 1.0), seeds: int = 2) -> Grid:
    return Grid(starts, fractions, range(seeds), 10, lambda seed: list(range(10)))


def table(fit: Fitter, plan: Grid | None = None, mark: str = "m") -> tuple[Row, ...]:
    return run_trials(plan or grid(), fit=fit, out=fit.out, mark=mark).rows


def test_an_interrupted_table_goes_on_and_ends_with_the_same_numbers(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = table(Fitter(whole))
    first = Fitter(tmp_path, most=5)
    stopped = r"Stopped by Ctrl-C \(SIGINT\) with 5 finished trials in .*; the same command resumes after them."
    with pytest.raises(Interrupted, match=stopped) as caught:
        table(first)
    assert caught.value.exit_code == 130
    with pytest.raises(Interrupted, match=r"Stopped by Ctrl-C \(SIGINT\) before any trial was finished\.$"):
        table(Fitter(whole, most=0), mark="another")
    with (tmp_path / TRIALS).open("a") as file:
        file.write('{"mark": "m", "start": "all", "fr')  # cut off by the kill
    second = Fitter(tmp_path)
    assert table(second) == expected
    assert len(first.done) == 5
    assert len(second.done) == 3
    assert set(first.done) | set(second.done) == {
        (s, f, i) for s in ("random", "all") for f in (0.5, 1.0) for i in (0, 1)
    }
    third = Fitter(tmp_path)
    assert table(third) == expected
    assert third.done == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_keeps_the_finished_trials_and_says_so(tmp_path: Path, number: signal.Signals) -> None:
    class Signalled(Fitter):
        def __call__(self, trial: Trial, keep_in: Path | None) -> Fitted:
            if len(self.done) == 3:
                signal.raise_signal(number)
                raise AssertionError("training went on")
            return super().__call__(trial, keep_in)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"Stopped by {number.name} with 3 finished trials in .*{TRIALS}") as caught:
        table(Signalled(tmp_path))
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    second = Fitter(tmp_path)
    table(second)
    assert len(second.done) == 5


def test_other_options_or_data_reuse_nothing_and_lose_nothing(tmp_path: Path) -> None:
    table(Fitter(tmp_path))
    other = Fitter(tmp_path)
    table(other, mark="n")
    assert len(other.done) == 8
    again = Fitter(tmp_path)
    table(again)
    assert again.done == [("all", 1.0, 0)]  # whose weights the other table had replaced


def test_a_larger_table_takes_what_is_there(tmp_path: Path) -> None:
    table(Fitter(tmp_path), grid(("random",), (1.0,), 1))
    more = Fitter(tmp_path)
    rows = table(more, grid(("random", "encoder"), (1.0,), 3))
    assert more.done == [("random", 1.0, 1), ("random", 1.0, 2), *[("encoder", 1.0, seed) for seed in range(3)]]
    assert rows[0].scores["top1"].values == pytest.approx((0.1, 0.2, 0.3))


def test_weights_that_are_gone_are_made_anew(tmp_path: Path) -> None:
    table(Fitter(tmp_path))
    for name in (WEIGHTS, KEPT):
        (tmp_path / name).unlink()
        again = Fitter(tmp_path)
        found = run_trials(grid(), fit=again, out=tmp_path, mark="m")
        assert again.done == [("all", 1.0, 0)]
        assert found.details == {"of": "all"}


def test_the_weights_are_those_of_the_best_start(tmp_path: Path) -> None:
    plan = grid(("random", "decoder", "encoder"))
    found = run_trials(plan, fit=Fitter(tmp_path, gains={"random": 0.1, "decoder": 0.3}), out=tmp_path, mark="m")
    assert (tmp_path / WEIGHTS).read_text() == "decoder"
    assert json.loads((tmp_path / KEPT).read_text()) == ["m", "decoder", 1.0, 0]
    assert not (tmp_path / CANDIDATES).exists()
    assert found.note() == (
        "The saved weights are those of start decoder, the start with the best top1 here, fraction 1, seed 0.",
    )
    alone = run_trials(grid(("encoder",), (0.5,), 1), fit=Fitter(tmp_path / "b"), out=tmp_path / "b", mark="m")
    assert alone.note() == ()


def test_of_equally_good_starts_the_one_that_loads_most_is_kept(tmp_path: Path) -> None:
    table(Fitter(tmp_path), grid(("random", "decoder", "encoder")))
    assert (tmp_path / WEIGHTS).read_text() == "encoder"


def test_more_seeds_that_change_the_best_start_make_its_weights_anew(tmp_path: Path) -> None:
    class Late(Fitter):
        def __call__(self, trial: Trial, keep_in: Path | None) -> Fitted:
            found = super().__call__(trial, keep_in)
            late = trial.start == "random" and trial.seed == 2
            return Fitted({"top1": one_value(9.0)}) if late else found

    table(Late(tmp_path), grid(fractions=(1.0,)))
    assert (tmp_path / WEIGHTS).read_text() == "all"
    more = Late(tmp_path)
    table(more, grid(fractions=(1.0,), seeds=3))
    assert more.done == [("random", 1.0, 2), ("all", 1.0, 2), ("random", 1.0, 0)]
    assert (tmp_path / WEIGHTS).read_text() == "random"


def test_what_was_found_is_read_again(tmp_path: Path) -> None:
    class Whole(Fitter):
        def __call__(self, trial: Trial, keep_in: Path | None) -> Fitted:
            curve = Curve(((1, 2.0), (2, 1.5)), ((2, 0.5),))
            return replace(super().__call__(trial, keep_in), per_image=(0.25, -0.25), curve=curve)

    first = run_trials(grid(), fit=Whole(tmp_path), out=tmp_path, mark="m")
    assert run_trials(grid(), fit=Whole(tmp_path, most=0), out=tmp_path, mark="m") == first


def test_one_seed_has_its_own_interval_and_several_have_theirs(tmp_path: Path) -> None:
    one = table(Fitter(tmp_path), grid(("random",), (1.0,), 1))[0]
    assert (one.scores["top1"].low, one.scores["top1"].deviation) == (pytest.approx(0.05), None)
    assert dict(one.setting) == {"start": "random", "fraction": 1.0, "images": 10}
    several = table(Fitter(tmp_path), grid(("random",), (1.0,), 3))[0].scores["top1"]
    assert several.deviation == pytest.approx(0.1)
    half = 4.30265 * 0.1 / 3**0.5  # t(0.975, 2)
    assert (several.low, several.high) == (0.0, pytest.approx(several.mean + half, abs=1e-5))


def test_lines_say_what_was_done(tmp_path: Path) -> None:
    table(Fitter(tmp_path), grid(("all",), (0.5,), 1))
    line = json.loads((tmp_path / TRIALS).read_text())
    assert (line["start"], line["fraction"], line["seed"], line["images"]) == ("all", 0.5, 0, 5)
    assert line["scores"]["top1"]["mean"] == pytest.approx(0.55)


def test_the_mark_is_of_options_and_data() -> None:
    asked = FinetuneClassifyOptions(lr=0.1, out="a", start=["all"], workers=0)
    mark = mark_of(asked, "weights", "data")
    assert mark == mark_of(asked.changed(out="b", start=["random"], seeds=5, workers=3), "weights", "data")
    assert mark != mark_of(asked.changed(lr=0.2), "weights", "data")
    assert mark != mark_of(asked, "weights", "more data")


def test_a_table_without_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match="no trials to run"):
        table(Fitter(tmp_path), grid(seeds=0))
    with pytest.raises(DovetailError, match="fraction is 2"):
        table(Fitter(tmp_path), grid(fractions=(2.0,)))
