"""The page of `dovetail compare`: scores with confidence intervals, and the training curves of the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dovetail.downstream.table.results import Row, legend, shown
from dovetail.files.writing import writing
from dovetail.report.history import History, Series, read_history
from dovetail.report.plots import Plot, draw
from dovetail.report.score_plots import draw_score
from dovetail.report.templating import filled, replace_file
from dovetail.run.folder import CONFIG, read_config
from dovetail.train.monitors import MAX_POSITION, MIN_RANK, MIN_SPREAD, MIN_WITHIN


def write_comparison(
    path: Path,
    tables: Mapping[str, Sequence[Row]],
    notes: Sequence[str],
    runs: Sequence[Path],
    *,
    title: str = "Runs side by side",
    verdict: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        path: Path of the page.
        tables: Rows of each task. Their settings contain "run".
        notes: Notes on the tables.
        runs: Folders of pre-training runs, whose curves are drawn.
        title: Title of the page.
        verdict: Sentences at the beginning.

    Raises:
        DovetailError: The file cannot be written.
    """
    histories = {name: read_history(folder) for name, folder in named(runs).items()}
    curves = [replace(plot, order=list(histories)) for plot in plots(histories) if plot.lines]
    text = filled(
        "comparison.html.j2",
        title=title,
        verdict=verdict,
        written=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        runs=[(name, about(folder, histories[name])) for name, folder in named(runs).items()],
        tasks=[task(name, number, rows) for number, (name, rows) in enumerate(tables.items())],
        notes=notes,
        curves=[(plot.title, Markup(draw(plot, name=f"curve{number}"))) for number, plot in enumerate(curves)],
    )
    with writing(path, option="out"):
        replace_file(path, text)


def named(runs: Sequence[Path]) -> dict[str, Path]:
    """Return the folders by name, or by path if several have the same name."""
    names = [folder.resolve().name for folder in runs]
    return {name if names.count(name) == 1 else str(folder): folder for name, folder in zip(names, runs, strict=True)}


def about(folder: Path, history: History) -> dict[str, str]:
    """Return a description of a run and its progress."""
    options = read_config(folder) if (folder / CONFIG).is_file() else {}
    last = history.last
    return {
        "method": shown(options.get("method")),
        "model": shown(options.get("model")),
        "data": shown(options.get("data")),
        "steps": f"{last['step']:,}" if last else "-",
        "loss": f"{last['loss']:.4f}" if last else "-",
        "images per second": f"{last['images_per_second']:.1f}" if last else "-",
    }


def task(name: str, number: int, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the plots and the table of a task."""
    scores = dict.fromkeys(score for row in rows for score in row.scores)
    return {
        "name": name,
        "plots": [
            (score, Markup(draw_score(score, rows, name=f"score{number}-{n}"))) for n, score in enumerate(scores)
        ],
        "legend": legend([score for row in rows for score in row.scores.values()]),
        **table(rows),
    }


def table(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the headings and cells of a table of all settings and scores, with scores in per cent."""
    settings = list(dict.fromkeys(setting for row in rows for setting in row.setting))
    scores = list(dict.fromkeys(score for row in rows for score in row.scores))
    return {
        "head": [*settings, *(f"{score} (%)" for score in scores)],
        "rows": [
            [*(shown(row.setting.get(one)) for one in settings), *(str(row.scores.get(one, "-")) for one in scores)]
            for row in rows
        ],
    }


def plots(histories: Mapping[str, History]) -> list[Plot]:
    """Return one plot per quantity, with a line for each run that has it."""

    def lines(field: str) -> list[Series]:
        found = [history.number(field, name) for name, history in histories.items()]
        return [line for line in found if line.values]

    def each(title: str, unit: str, field: str, **how: Any) -> list[Plot]:
        return [Plot(title.format(name), unit, found, **how) for name, found in groups(histories, field).items()]

    within, position = "fraction of variance (0 to 1)", "share within images (0 to 1)"
    return [
        Plot("Loss (weighted sum of all terms)", "loss (no unit)", lines("loss")),
        *each("Loss of term {} (unweighted)", "loss (no unit)", "parts"),
        Plot("Learning rate", "learning rate (no unit)", lines("lr"), logarithmic=True),
        Plot("Teacher momentum", "momentum (0 to 1)", lines("teacher_momentum")),
        Plot("Gradient norm", "norm (no unit)", lines("grad_norm"), logarithmic=True),
        Plot("Speed", "images per second", lines("images_per_second"), from_zero=True),
        Plot("Waiting for data", "fraction of time (0 to 1)", lines("data_wait"), from_zero=True),
        *each("Effective rank of {}", "rank (dimensions)", "effective_rank", from_zero=True, lower=MIN_RANK),
        *each("Spread of {} (0: one point, 1: even)", "spread (0 to 1)", "spread", from_zero=True, lower=MIN_SPREAD),
        *each("Within-image share of {}", within, "within_image_share", from_zero=True, lower=MIN_WITHIN),
        *each("Position share of {}", position, "position_share", from_zero=True, upper=MAX_POSITION),
        *each("Effective prototypes of {}", "prototypes (number)", "prototypes_used", from_zero=True),
        *each("Teacher entropy of {}", "share of maximum (0 to 1)", "teacher_entropy", from_zero=True),
    ]


def groups(histories: Mapping[str, History], field: str) -> dict[str, list[Series]]:
    """Return the series of a field that maps names to numbers, by name and run. Of "parts", only losses are used."""
    found: dict[str, list[Series]] = {}
    for run, history in histories.items():
        for one in history.group(field):
            if field != "parts" or one.name.endswith("/loss"):
                found.setdefault(one.name.removesuffix("/loss"), []).append(Series(run, one.steps, one.values))
    return found
