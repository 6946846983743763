"""A two-dimensional map of embeddings on the report page, which shows the path of an image on hover or by keyboard.

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
    """Coordinates `places` [N, 2], labels of the two axes, and an explanation."""

    places: NDArray[np.float64]
    axes: tuple[str, str]
    words: str


def page_for_map(run: str | Path, projection: Projection) -> Path:
    """Return the page of a run, before anything is computed.

    Raises:
        DovetailError: The run has no page, or a package is missing.
    """
    page = Path(run) / PAGE
    if not page.is_file():
        raise RunError(f"The page {page} does not exist; specify a run with a page, or omit --page-map.")
    if projection == "tsne":
        manifold()
    return page


def manifold() -> Any:
    """Import sklearn.manifold. Raise `ResourceError` if scikit-learn is not installed."""
    try:
        return importlib.import_module("sklearn.manifold")
    except ImportError:
        raise ResourceError(
            "t-SNE needs the package scikit-learn; install it with `pip install 'dovetail-ssl[map]'`, or use "
            "--page-map pca."
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
    """Add a map of the embeddings [N, D] to a page, or replace the map on it.

    Returns:
        Number of images on the map: at most `MOST_POINTS`, evenly spaced over the source.

    Raises:
        DovetailError: There are fewer than four images, or another version wrote the page.
    """
    if len(indices) < LEAST:
        raise DataError(f"A map needs at least {LEAST} readable images, got {len(indices)}; add more images.")
    chosen = np.unique(np.linspace(0, len(indices) - 1, MOST_POINTS).round().astype(int))
    flat = flattened(vectors[chosen], projection)
    svg = draw_map(flat, source, [indices[item] for item in chosen], in_channels=in_channels)
    section = filled("map.html.j2", svg=svg, count=len(chosen), total=len(indices), words=flat.words)
    text = page.read_text(encoding="utf-8")
    text = put_between(text, "map link", '<li><a href="#map">Map</a></li>', page)
    replace_file(page, put_between(text, "map", section, page))
    return len(chosen)


def put_between(text: str, marker: str, content: str, page: Path) -> str:
    """Replace the text between two marker comments of a page."""
    begin, end = f"<!-- {marker} -->", f"<!-- end of {marker} -->"
    if begin not in text or end not in text:
        raise RunError(f"{page} was written by another version and has no place for a map; run pre-training again.")
    head, tail = text.split(begin, 1)[0], text.split(end, 1)[1]
    return f"{head}{begin}{content}{end}{tail}"


def flattened(vectors: NDArray[np.float32], projection: Projection) -> Flat:
    """Project L2-normalised embeddings [N, D] to two dimensions. The result is deterministic."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if projection == "pca":
        projected, _ = principal_components(torch.from_numpy(unit), 2)
        total = max(float(np.square(unit - unit.mean(axis=0)).sum()), 1e-12)
        shares = [float(column.square().sum()) / total for column in projected.unbind(1)]
        first, second = (f"{share:.0%} of the variance" for share in shares)
        words = "The axes are the first two principal components, so directions and distances are meaningful."
        axes = (f"first component (no unit), {first}", f"second component (no unit), {second}")
        return Flat(projected.double().numpy(), axes, words)
    perplexity = min(PERPLEXITY, (len(unit) - 1) / 3)
    tsne = manifold().TSNE(2, perplexity=perplexity, init="pca", random_state=0)
    words = f"t-SNE (perplexity {perplexity:.0f}) keeps neighbours together, but distances between groups mean little."
    axes = ("t-SNE, first axis (no unit)", "t-SNE, second axis (no unit)")
    return Flat(np.asarray(tsne.fit_transform(unit), dtype=np.float64), axes, words)


def draw_map(flat: Flat, source: ImageSource, indices: Sequence[int], *, in_channels: int) -> Markup:
    """Return the map as inline SVG. Each point has the path of its image and, if there is room, a thumbnail.

    An image that is no longer readable is shown as a point.
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
    """Return the points, in order, whose distance to all earlier ones is `least` or more along an axis."""
    kept: dict[int, None] = {}
    for number, (x, y) in places.items():
        if all(max(abs(x - places[other][0]), abs(y - places[other][1])) >= least for other in kept):
            kept[number] = None
    return kept
