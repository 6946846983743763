"""Sheets of images in rows and columns, with titles and legends, as PNG files or for the page."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dovetail.errors import DataError, ResourceError
from dovetail.report.pixels import Rgb
from dovetail.report.plots import INK, NO_METADATA, VARIABLES, save_figure, themed

CELL_INCHES = 2.0
DPI = 130
FONT_POINTS = 9
LONGEST_NAME = 22  # number of characters that fit above an image
MAP = "viridis"  # perceptually uniform, and suited to colour-blind readers
STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": FONT_POINTS,
    "svg.fonttype": "none",
    "text.color": INK,  # black in a file, the page's ink on a page
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


class Sheet:
    """A figure of `rows` x `columns` images without axes, with a `title`. `write` saves it."""

    def __init__(
        self, rows: int, columns: int, *, title: str, cell: tuple[float, float] = (CELL_INCHES, CELL_INCHES)
    ) -> None:
        with mpl.rc_context(STYLE):
            self.figure = Figure(figsize=(columns * cell[0], rows * cell[1] + 0.5), layout="constrained", dpi=DPI)
            FigureCanvasAgg(self.figure)
            self.axes: NDArray[Any] = self.figure.subplots(rows, columns, squeeze=False)
            for axes in self.axes.flat:
                axes.set_axis_off()
                axes.set(xticks=[], yticks=[])  # Matplotlib would measure the labels of hidden ticks, too
            self.title = self.figure.suptitle(title, fontsize=FONT_POINTS + 1)

    def show(
        self, row: int, column: int, picture: Rgb, *, title: str = "", smooth: bool = False, left: bool = False
    ) -> Axes:
        """Show an image at a position and return its axes. Cells of maps are drawn as squares unless `smooth` is set.

        `left` aligns a title that is wider than the image to its left edge.
        """
        axes: Axes = self.axes[row, column]
        axes.set_anchor("N")  # aligns the titles of a row for any shape of images
        axes.imshow(picture, interpolation="hanning" if smooth else "nearest")
        if title:
            with mpl.rc_context(STYLE):
                axes.set_title(title, fontsize=FONT_POINTS, loc="left" if left else "center")
        return axes

    def scale(self, low: float, high: float, label: str, *, colours: str | Colormap = MAP) -> None:
        """Add a colour bar."""
        mappable = ScalarMappable(Normalize(low, high), colours)
        with mpl.rc_context(STYLE):
            bar = self.figure.colorbar(mappable, ax=list(self.axes.flat), label=label, shrink=0.6, aspect=30)
        assert bar.solids is not None  # the bar is filled
        bar.solids.set_rasterized(True)

    def legend(self, handles: Sequence[Artist], title: str) -> None:
        """Add a legend below the images."""
        with mpl.rc_context(STYLE):
            self.figure.legend(
                handles=handles,
                loc="outside lower center",
                ncols=4,
                fontsize=FONT_POINTS,
                frameon=False,
                title=title,
            )

    def inline(self, *, name: str, label: str) -> str:
        """Return the sheet as an inline `<svg>` in the text colour of the page, without its title, which the page sets.

        `name` makes its ids unique on the page.
        """
        text = io.StringIO()
        with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
            self._show_title(False)
            save_figure(self.figure, text, format="svg", dpi=DPI, transparent=True, metadata=NO_METADATA)
            self._show_title(True)
        return themed(text.getvalue(), name=name, label=label, variables={INK: VARIABLES[INK]})

    def _show_title(self, visible: bool) -> None:
        self.title.set_visible(visible)
        self.title.set_in_layout(visible)

    def pixels(self) -> Rgb:
        """Return the sheet as an image [H, W, 3]."""
        file = io.BytesIO()
        self._save(file, format="rgba")  # compressing it as PNG would take as long as drawing it
        width, height = (int(side) for side in self.figure.bbox.size)
        return np.frombuffer(file.getvalue(), np.uint8).reshape(height, width, 4)[..., :3].copy()

    def save(self, path: Path) -> None:
        """Save the sheet as PNG."""
        self._save(path, format="png", metadata={"Software": None})

    def _save(self, file: Path | IO[bytes], *, format: str, **options: Any) -> None:
        with mpl.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # names in any script
            save_figure(self.figure, file, format=format, dpi=DPI, **options)

    def write(self, path: Path) -> Path:
        """Save the sheet as PNG and return the path."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.save(path)
        except OSError as error:
            raise ResourceError(f"Cannot write {path}: {error.strerror}; specify another folder with --out.") from None
        return path


def put_label(axes: Axes, x: float, y: float, words: str, *, corner: bool = False) -> None:
    """Draw a text on a white label, centred at a position or with its corner there."""
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    places: dict[str, Any] = {"va": "top"} if corner else {"ha": "center", "va": "center"}
    axes.text(x, y, words, fontsize=FONT_POINTS - 1, color="black", bbox=box, **places)


def short(name: str) -> str:
    """Return the name of a file for a title: printable, and shortened in the middle if it is long."""
    name = "".join(sign if sign.isprintable() else "?" for sign in Path(name).name.encode("utf-8", "replace").decode())
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half + 1 :]}"


def heat(weights: NDArray[np.floating]) -> Rgb:
    """Colour weights [h, w] with the colour map `MAP`. The largest weight has the brightest colour."""
    top = float(weights.max())
    coloured = mpl.colormaps[MAP](weights / top if top > 0 else weights)
    pixels: Rgb = (coloured[..., :3] * 255).round().astype(np.uint8)
    return pixels


def enlarged_to(picture: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Enlarge a map [h, w, ...] by repeating its cells (nearest neighbour)."""
    rows = np.arange(height) * picture.shape[0] // height
    columns = np.arange(width) * picture.shape[1] // width
    spread: NDArray[Any] = picture[rows][:, columns]
    return spread


def blended(image: Rgb, colours: Rgb, *, share: float = 0.55) -> Rgb:
    """Blend colours [h, w, 3] with a greyscale version of an image [H, W, 3]."""
    height, width = image.shape[:2]
    grey = image.mean(axis=2, keepdims=True)
    mixed: Rgb = np.round((1 - share) * grey + share * enlarged_to(colours, height, width)).astype(np.uint8)
    return mixed


def rows_of(items: Sequence[Any], least: int, what: str) -> None:
    """Raise `DataError` if there are too few images."""
    if len(items) < least:
        raise DataError(f"{what} needs at least {least} readable images, got {len(items)}; add more images.")
