"""Inline SVG: escaped, without foreign names, themed, of bounded size."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from dovetail.report import compare_page as comparison
from dovetail.report import page
from dovetail.report.history import History, Series
from dovetail.report.plots import MOST_POINTS, NO_METADATA, STYLE, Plot, draw, figure_of, save_figure, svg_of, thinned


def line(name: str, count: int = 4) -> Series:
    return Series(name, tuple(range(1, count + 1)), tuple(1.0 / step for step in range(1, count + 1)))


def test_a_plot_is_escaped_and_needs_nothing_else() -> None:
    svg = draw(Plot('Loss "<script>"', "nats & $x$", [line("<b>one</b>"), line("two")], lower=0.5), name="p0")
    ElementTree.fromstring(svg)
    assert "<script" not in svg
    assert "<b>" not in svg
    assert "nats &amp; $x$" in svg
    assert "optimiser steps" in svg
    assert "http" not in svg
    assert "var(--line-0)" in svg
    assert "var(--line-1)" in svg
    assert "#010203" not in svg


def test_ids_of_two_plots_differ_and_references_stay_within() -> None:
    found = [draw(Plot("Loss", "no unit", [line("one")]), name=name) for name in ("p0", "p1")]
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in found]
    assert ids[0].isdisjoint(ids[1])
    for svg, own in zip(found, ids, strict=True):
        references = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
        assert references
        assert references <= own


def test_long_runs_are_thinned_without_losing_their_mean_or_their_end() -> None:
    steps, values = thinned(line("one", 10_001))
    assert len(steps) <= MOST_POINTS
    assert steps[-1] == 10_001
    assert values[0] > values[-1] > 0
    assert thinned(line("one", 3)) == ([1, 2, 3], [1.0, 0.5, 1 / 3])
    assert thinned(Series("none", (), ())) == ([], [])


def test_a_logarithmic_axis_has_plain_numbers() -> None:
    svg = draw(Plot("Norm", "norm", [Series("norm", (1, 2, 3), (0.01, 1.0, 300.0))], logarithmic=True), name="p0")
    assert "mathdefault" not in svg


def drawn(plot: Plot) -> Figure:
    with mpl.rc_context(STYLE):
        figure = figure_of(plot)
        figure.draw_without_rendering()
    return figure


def plots_of_two_runs() -> list[Plot]:
    """Every plot of a run's page and of a comparison, with two lines each."""
    names = {"encoder": 0.7, "decoder_p0": 0.9}
    fields = ("weights", "effective_rank", "spread", "prototypes_used", "teacher_entropy")
    fields += ("within_image_share", "position_share")
    numbers = ("loss", "lr", "teacher_momentum", "grad_norm", "images_per_second", "data_wait")
    reading = {"parts": {f"{name}/loss": value for name, value in names.items()}}
    reading |= dict.fromkeys(fields, names) | dict.fromkeys(numbers, 0.123)
    history = History(tuple(reading | {"step": step} for step in (1, 900)))
    return [*page.plots(history, list(names)), *comparison.plots({"runs/one": history, "runs/two": history})]


@pytest.mark.parametrize("plot", plots_of_two_runs(), ids=lambda plot: plot.title)
def test_every_axis_has_a_unit_that_is_not_cut_off(plot: Plot) -> None:
    figure = drawn(plot)
    axes = figure.axes[0]
    assert axes.get_xlabel() == "optimiser steps"
    assert axes.get_ylabel()
    height = figure.bbox.height
    box = axes.yaxis.label.get_window_extent()
    assert box.y0 >= 0
    assert box.y1 <= height


def test_a_name_stands_with_a_single_line_where_others_have_others() -> None:
    one = Plot("Term cls", "loss", [line("vit")])
    assert "vit" not in draw(one, name="p0")
    assert "vit" in draw(Plot("Term cls", "loss", [line("vit")], order=["unet", "vit"]), name="p0")


def test_a_single_reading_has_a_whole_number_of_steps() -> None:
    axes = drawn(Plot("Loss", "loss", [line("one", 1)])).axes[0]
    assert axes.get_xticks().tolist() == [1]


def test_a_level_line_does_not_lie_on_the_edge() -> None:
    level = Series("one", (1, 2), (0.2, 0.2))
    assert drawn(Plot("Share", "share", [level], from_zero=True)).axes[0].get_ylim() == pytest.approx((0, 0.216))
    nothing = Series("one", (1, 2), (0.0, 0.0))
    assert drawn(Plot("Share", "share", [nothing], from_zero=True)).axes[0].get_ylim() == (0, 1)
    below = drawn(Plot("Rank", "rank", [level], from_zero=True, lower=1.5)).axes[0]
    assert below.get_ylim()[1] > 1.5
    assert drawn(Plot("Share", "share", [level], from_zero=True, upper=0.5)).axes[0].get_ylim()[1] > 0.5


def test_names_that_no_font_can_draw_are_spelled_out() -> None:
    figure = Figure()
    figure.suptitle("\udcff\udcfe")
    assert "<svg" in svg_of(figure)
    assert figure.get_suptitle() == r"\udcff\udcfe"


@pytest.mark.parametrize("format", ["svg", "png"])
def test_figures_are_saved_as_matplotlib_saves_them(format: str) -> None:
    files = []
    plot = Plot("Loss", "nats", [line("one"), line("two")], logarithmic=True, lower=0.5)
    with mpl.rc_context(STYLE | {"svg.hashsalt": "same"}):
        for save in (Figure.savefig, save_figure, save_figure):
            figure = figure_of(plot)
            files.append(io.BytesIO())
            save(figure, files[-1], format=format, metadata=NO_METADATA if format == "svg" else None)
            assert figure.get_layout_engine() is not None
        figure.axes[0].set_ylabel("a label\nof two lines")  # a figure that is saved again is laid out again
        before = figure.axes[0].get_position().x0
        save_figure(figure, io.BytesIO(), format=format)
        assert figure.axes[0].get_position().x0 > before
    assert files[0].getvalue() == files[1].getvalue() == files[2].getvalue()
