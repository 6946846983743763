"""A map of embeddings in a run's page: every image at its place in two dimensions, its path on hover or by keys.

Shapes: N images, D dimensions.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dovetail.data.reading.decode import UnreadableError
from dovetail.data.sources import ImageSource
from dovetail.errors import DataError, ResourceError, RunError
from dovetail.report.features import principal_components
from dovetail.report.page import PAGE
from dovetail.report.pixels import jpeg_uri, thumbnail
from dovetail.report.plots import LINE_COLOURS, STYLE, svg_of, themed
from dovetail.report.templating import filled, replace_file

Projection = Literal["pca", "tsne"]

LEAST, MOST_POINTS, MOST_PICTURES = 4, 2000, 300
PERPLEXITY = 30.0  # van der Maaten and Hinton (2008): between 5 and 50
SIZE_INCHES = (12.0, 7.5)
PICTURE_PX, PICTURE_POINTS = 96, 32.0
POINT = re.compile(r'<g id="map-point-(\d+)">(.*?)(<use [^>]*?x="([\d.-]+)" y="([\d.-]+)"[^>]*?/>)', re.DOTALL)


class Flat(NamedTuple):
    """`places` [N, 2], what the two axes are, and the same in a sentence."""

    places: NDArray[np.float64]
    axes: tuple[str, str]
    words: str


def page_for_map(run: str | Path, projection: Projection) -> Path:
    """Return the page that a map can be put into.

    Raises:
        DovetailError: Where the run has no page or a package is missing; asked before anything is computed.
    """
    page = Path(run) / PAGE
    if not page.is_file():
        raise RunError(f"There is no page {page} to put a map into; give a run with one, or leave --page-map out.")
    if projection == "tsne":
        manifold()
    return page


def manifold() -> Any:
    """Return scikit-learn's module; raise `ResourceError` where it is not installed."""
    try:
        return importlib.import_module("sklearn.manifold")
    except ImportError:
        raise ResourceError(
            "t-SNE needs the package scikit-learn; install dovetail-ssl[map], or give --page-map pca."
        ) from None


def add_map(
    page: Path,
    projection: Projection,
    source: ImageSource,
    indices: Sequence[int],
    vectors: NDArray[np.float32],
    *,
    in_channels: int,
) -> int:
    """Put the map of embeddings [N, D] of a source's images into a page, in place of one that is there.

    Returns:
        How many images are on it: at most `MOST_POINTS`, evenly spaced over the source.

    Raises:
        DovetailError: For fewer than four images, or a page of another version.
    """
    if len(indices) < LEAST:
        raise DataError(f"A map needs at least {LEAST} readable images and found {len(indices)}; add some.")
    chosen = np.unique(np.linspace(0, len(indices) - 1, MOST_POINTS).round().astype(int))
    flat = flattened(vectors[chosen], projection)
    svg = draw_map(flat, source, [indices[item] for item in chosen], in_channels=in_channels)
    section = filled("map.html.j2", svg=svg, count=len(chosen), total=len(indices), words=flat.words)
    text = page.read_text(encoding="utf-8")
    text = put_between(text, "map link", '<li><a href="#map">Map</a></li>', page)
    replace_file(page, put_between(text, "map", section, page))
    return len(chosen)


def put_between(text: str, marker: str, content: str, page: Path) -> str:
    """Return a page's text with what lies between two remarks replaced."""
    begin, end = f"<!-- {marker} -->", f"<!-- end of {marker} -->"
    if begin not in text or end not in text:
        raise RunError(f"{page} was written by another version and has no place for a map; run it again.")
    head, tail = text.split(begin, 1)[0], text.split(end, 1)[1]
    return f"{head}{begin}{content}{end}{tail}"


def flattened(vectors: NDArray[np.float32], projection: Projection) -> Flat:
    """Return embeddings [N, D], brought to length 1, in two dimensions; the same ones give the same map."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if projection == "pca":
        projected, _ = principal_components(torch.from_numpy(unit), 2)
        total = max(float(np.square(unit - unit.mean(axis=0)).sum()), 1e-12)
        shares = [float(column.square().sum()) / total for column in projected.unbind(1)]
        first, second = (f"{share:.0%} of the variance" for share in shares)
        words = "The axes are the first two principal components, so directions and distances mean something."
        axes = (f"first component (no unit), {first}", f"second component (no unit), {second}")
        return Flat(projected.double().numpy(), axes, words)
    perplexity = min(PERPLEXITY, (len(unit) - 1) / 3)
    tsne = manifold().TSNE(2, perplexity=perplexity, init="pca", random_state=0)
    words = f"t-SNE (perplexity {perplexity:.0f}) keeps neighbours together; distances between groups mean little."
    axes = ("t-SNE, first axis (no unit)", "t-SNE, second axis (no unit)")
    return Flat(np.asarray(tsne.fit_transform(unit), dtype=np.float64), axes, words)


def draw_map(flat: Flat, source: ImageSource, indices: Sequence[int], *, in_channels: int) -> Markup:
    """Return the map as inline SVG, each point with its path and, where there is room, its image.

    An image that can be read no more is a point.
    """
    with mpl.rc_context(STYLE | {"svg.hashsalt": "map"}):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = figure.subplots()
        axes.margins(0.06)
        for number, (x, y) in enumerate(flat.places):
            axes.plot([x], [y], marker="o", markersize=7, color=LINE_COLOURS[0], gid=f"point-{number}")
        axes.set_xlabel(flat.axes[0])
        axes.set_ylabel(flat.axes[1])
        svg = themed(svg_of(figure), name="map", label=f"Map of {len(indices)} embeddings")
    places = {int(number): (float(x), float(y)) for number, _, _, x, y in POINT.findall(svg)}
    apart = far_apart(places, PICTURE_POINTS)
    pictured = [*apart, *(number for number in places if number not in apart)][:MOST_PICTURES]
    uris = {}
    for number in pictured:
        with suppress(UnreadableError):
            uris[number] = jpeg_uri(thumbnail(source.open(indices[number], in_channels), PICTURE_PX))

    def with_name(found: re.Match[str]) -> str:
        number, x, y = int(found[1]), float(found[4]), float(found[5])
        name = escape(source.name(indices[number]))
        corner = f'x="{x - PICTURE_POINTS / 2:.1f}" y="{y - PICTURE_POINTS / 2:.1f}"'
        size = f'width="{PICTURE_POINTS:.0f}" height="{PICTURE_POINTS:.0f}"'
        image = f'<image href="{uris[number]}" {corner} {size}></image>' if number in uris else ""
        kind = "point" if number in apart else "point dot"
        opening = f'<g class="{kind}" data-name="{name}" data-x="{x:.1f}" data-y="{y:.1f}">'
        return f"{opening}<title>{name}</title>{found[2]}{found[3]}{image}"

    return Markup(POINT.sub(with_name, svg))


def far_apart(places: dict[int, tuple[float, float]], least: float) -> dict[int, None]:
    """Return those points, in order, that lie `least` or more from every earlier one of them along an axis."""
    kept: dict[int, None] = {}
    for number, (x, y) in places.items():
        if all(max(abs(x - places[other][0]), abs(y - places[other][1])) >= least for other in kept):
            kept[number] = None
    return kept
