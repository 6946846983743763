"""Inline SVG: escaped, without foreign names, themed, of bounded size."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from dovetail.report.history import Series
from dovetail.report.plots import MOST_POINTS, Plot, draw, thinned


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
