"""Plots of scores with confidence intervals: a dot per row, or a curve over a setting such as the label fraction."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dovetail.downstream.table.results import Row, Score, shown
from dovetail.report.plots import (
    FONT_POINTS,
    LINE_COLOURS,
    SIZE_INCHES,
    STYLE,
    legend_height,
    legend_of,
    svg_of,
    themed,
)

MARKERS = ("o", "s", "^", "D", "v", "P")
ROW_INCHES = 0.32
LABEL_LETTERS = 40  # longest line of a row's label; longer ones would leave no room for the plot
MOST = 101.0  # per cent, with room for half a dot


@dataclass(frozen=True)
class Over:
    """A setting for the horizontal axis of a curve: its label, and the factor that converts it to the axis' unit."""

    axis: str
    factor: float = 1.0
    same_as: tuple[str, ...] = ()  # settings that depend on this one


CURVES: Mapping[str, Over] = {
    "fraction": Over("labelled images (% of all)", 100.0, ("images",)),
    "k": Over("neighbours (number)"),
    "labels": Over("labelled images (number)"),
}


def varying(rows: Sequence[Row]) -> list[str]:
    """Return the settings that differ between rows."""
    names = dict.fromkeys(name for row in rows for name in row.setting)
    return [name for name in names if len({shown(row.setting.get(name)) for row in rows}) > 1]


def words(setting: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return a label such as "wheat, start all"."""
    parts = [(name, setting[name]) for name in names if name in setting]
    said = (shown(value) if name == "run" else f"{name} {shown(value)}" for name, value in parts)
    return ", ".join(said) or "all"


def draw_score(score: str, rows: Sequence[Row], *, name: str) -> str:
    """Plot a score of rows in per cent as an inline `<svg>`. `name` makes its ids unique on the page."""
    rows = [row for row in rows if score in row.scores]
    over = next((one for one in CURVES if one in varying(rows) and all(one in row.setting for row in rows)), None)
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = _dots(score, rows) if over is None else _curves(score, rows, over)
        return themed(svg_of(figure), name=name, label=f"{score} in per cent, with 95 % intervals")


def _dots(score: str, rows: Sequence[Row]) -> Figure:
    """Return a figure with one line per row, which makes rows easy to compare."""
    names = varying(rows)
    labels = [textwrap.fill(words(row.setting, names), LABEL_LETTERS) for row in rows]
    lines = max(label.count("\n") + 1 for label in labels)
    height = 0.9 + ROW_INCHES * (1 + lines) / 2 * max(len(rows), 2)
    figure = Figure(figsize=(SIZE_INCHES[0], height), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        _point(axes, row.scores[score], place, LINE_COLOURS[0], horizontal=True)
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(right=min(axes.get_xlim()[1], MOST))
    axes.set_xlabel(f"{score} (%)")
    return figure


def _curves(score: str, rows: Sequence[Row], over: str) -> Figure:
    """Return a figure with a curve for each combination of the other settings."""
    about = CURVES[over]
    names = [name for name in varying(rows) if name != over and name not in about.same_as]
    curves: dict[str, list[Row]] = {}
    for row in rows:
        curves.setdefault(words(row.setting, names), []).append(row)
    named = list(curves) if len(curves) > 1 else []
    height = SIZE_INCHES[1] + legend_height(named)
    figure = Figure(figsize=(SIZE_INCHES[0], height), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    for number, (label, points) in enumerate(curves.items()):
        points = sorted(points, key=lambda row: row.setting[over])
        places = [about.factor * row.setting[over] for row in points]
        colour, marker = LINE_COLOURS[number % len(LINE_COLOURS)], MARKERS[number % len(MARKERS)]
        means = [100 * row.scores[score].mean for row in points]
        axes.plot(places, means, color=colour, marker=marker, markersize=4, label=f" {label}")
        for place, row in zip(places, points, strict=True):
            _point(axes, row.scores[score], place, colour, horizontal=False)
    axes.xaxis.set_major_locator(FixedLocator(sorted({about.factor * row.setting[over] for row in rows})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(about.axis)
    axes.set_ylabel(f"{score} (%)")
    axes.set_ylim(top=min(axes.get_ylim()[1], MOST))
    legend_of(figure, named)
    return figure


def _point(axes: Axes, score: Score, place: float, colour: str, *, horizontal: bool) -> None:
    """Draw a mean, its confidence interval if there is one, and small ticks for several seeds."""
    mean = 100 * score.mean
    x, y = (mean, place) if horizontal else (place, mean)
    interval: Any = None
    if score.low is not None and score.high is not None:
        interval = [[max(mean - 100 * score.low, 0.0)], [max(100 * score.high - mean, 0.0)]]
    errors = {"xerr": interval} if horizontal else {"yerr": interval}
    axes.errorbar([x], [y], **errors, fmt="o", markersize=4.5, color=colour, capsize=3, linewidth=1.4)
    if len(score.values) > 1:
        values = [100 * value for value in score.values]
        same = [place] * len(values)
        x_values, y_values = (values, same) if horizontal else (same, values)
        marker = "|" if horizontal else "_"
        axes.plot(x_values, y_values, marker, color=colour, markersize=FONT_POINTS - 4)
