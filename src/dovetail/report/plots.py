"""Curves as inline SVG that uses the colours of the page, in light and dark mode.

Plots are drawn by Matplotlib. Text is kept as text, so it can be read aloud, searched and resized. Colours are written
as placeholders and replaced by CSS variables.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, LogFormatter, MaxNLocator

from dovetail.errors import printable
from dovetail.report.history import Series

# Colours of Okabe and Ito (2008), which suit colour-blind readers. Lines also have different dashes.
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LEGEND_INCHES = 0.23  # height of a row
HEADROOM = 1.08
LONGEST_OF_TWO = 18
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
SIZE_INCHES = (4.4, 2.9)
FONT_POINTS = 11.5  # plots are displayed at about one point per pixel
# Placeholder colours, which no other part of a plot has, and the CSS variables that replace them.
INK, GRID = "#010203", "#040506"
VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)"} | {
    colour: f"var(--line-{number})" for number, colour in enumerate(LINE_COLOURS)
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": FONT_POINTS,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
MOST_POINTS = 600  # more than the width can show


@dataclass(frozen=True)
class Plot:
    """A plot. `unit` is the label of the vertical axis; `lower` and `upper` are bounds to draw.

    The colour of a line depends on its position in `order`, or in `lines` by default. If `order` has several names, a
    single line has a legend, too.
    """

    title: str
    unit: str
    lines: Sequence[Series]
    logarithmic: bool = False
    from_zero: bool = False
    lower: float | None = None
    upper: float | None = None
    order: Sequence[str] = ()


def draw(plot: Plot, *, name: str) -> str:
    """Return a plot as an inline `<svg>`. `name` makes its ids unique on the page."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        return themed(svg_of(figure_of(plot)), name=name, label=plot.title)


def figure_of(plot: Plot) -> Figure:
    """Return a plot as a figure. `STYLE` must be active."""
    order = list(plot.order or [line.name for line in plot.lines])
    named = [line.name for line in plot.lines] if len(order) > 1 else []
    figure = Figure(figsize=(SIZE_INCHES[0], SIZE_INCHES[1] + legend_height(named)), layout="constrained")
    axes = figure.subplots()
    for line in plot.lines:
        number = order.index(line.name)
        steps, values = thinned(line)
        colour = LINE_COLOURS[number % len(LINE_COLOURS)]
        dashes = DASHES[number % len(DASHES)]  # makes two equal lines visible
        marker = "o" if len(steps) == 1 else ""
        # Matplotlib drops labels that start with an underscore.
        label = f" {line.name}"
        axes.plot(steps, values, color=colour, linestyle=dashes, label=label, marker=marker, markersize=4)
    _finish(axes, plot)
    legend_of(figure, named)
    return figure


def legend_columns(labels: Sequence[str]) -> int:
    """Return the number of legend columns that fit these labels."""
    return 2 if max(map(len, labels), default=0) <= LONGEST_OF_TWO else 1


def legend_height(labels: Sequence[str]) -> float:
    """Return the height of a legend with these labels in inches."""
    return LEGEND_INCHES * -(-len(labels) // legend_columns(labels))


def legend_of(figure: Figure, labels: Sequence[str]) -> None:
    """Add a legend below the axes if the lines have labels."""
    if labels:
        figure.legend(loc="outside lower left", ncols=legend_columns(labels), fontsize=FONT_POINTS - 1)


def _finish(axes: Axes, plot: Plot) -> None:
    """Set labels, bounds and scale of the axes."""
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel(plot.unit)
    bounds = [bound for bound in (plot.lower, plot.upper) if bound is not None]
    for bound in bounds:
        axes.axhline(bound, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        axes.annotate("bound", (1, bound), fontsize=FONT_POINTS - 1.5, **place)
    values = [value for line in plot.lines for value in line.values]
    if plot.logarithmic and values and min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    elif plot.from_zero:
        axes.set_ylim(0, HEADROOM * max([*values, *bounds, 0]) or 1)
    steps = {step for line in plot.lines for step in line.steps}
    axes.xaxis.set_major_locator(FixedLocator(list(steps)) if len(steps) == 1 else MaxNLocator(nbins=6, integer=True))


def thinned(line: Series) -> tuple[list[int], list[float]]:
    """Return at most `MOST_POINTS` points, each the mean of neighbouring values, so all parts of a run are shown."""
    every = math.ceil(len(line.steps) / MOST_POINTS) or 1
    starts = range(0, len(line.steps), every)
    values = [line.values[start : start + every] for start in starts]
    steps = [line.steps[min(start + every, len(line.steps)) - 1] for start in starts]
    return steps, [math.fsum(part) / len(part) for part in values]


def svg_of(figure: Figure) -> str:
    """Return a figure as the text of an SVG file."""
    for label in figure.findobj(Text):  # Matplotlib cannot draw lone surrogates, which file names may contain
        label.set_text(printable(label.get_text()))
    text = io.StringIO()
    save_figure(figure, text, format="svg", transparent=True, metadata=NO_METADATA)
    return text.getvalue()


def save_figure(figure: Figure, file: Path | IO[Any], *, format: str, **options: Any) -> None:
    """Save a figure as `figure.savefig` does, in less time: that draws a figure with a layout twice, to compute it.

    Args:
        figure: Figure.
        file: Path or open file.
        format: Name of the format. One other than "svg" is laid out with the figure's own canvas.
        options: Further arguments of `savefig`.
    """
    layout, canvas, dpi = figure.get_layout_engine(), figure.canvas, figure.dpi
    if layout is None:
        figure.savefig(file, format=format, **options)
        return
    try:
        if format == "svg":
            FigureCanvasSVG(figure)  # texts have its sizes, at its 72 dots per inch
        layout.execute(figure)
    finally:
        figure.set_canvas(canvas)
        figure.dpi = dpi
    figure.set_layout_engine(None)
    try:
        figure.savefig(file, format=format, **options)
    finally:
        figure.set_layout_engine(layout)


def themed(svg: str, *, name: str, label: str, variables: Mapping[str, str] = VARIABLES) -> str:
    """Convert Matplotlib's SVG to a fragment of the page, with unique ids and the colours of the page.

    `variables` maps colours of the plot to CSS variables.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # it would affect the whole page
    head, rest = svg.split(">", 1)  # the page sets the size
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", head) + ">" + rest
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', svg)
    svg = svg.replace('xlink:href="data:', 'href="data:')
    for placeholder, variable in variables.items():
        svg = svg.replace(placeholder, variable)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)
