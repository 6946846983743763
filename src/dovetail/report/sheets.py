"""Sheets of pictures as PNG files: one figure, rows and columns of images, words above and beside them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dovetail.errors import DovetailError
from dovetail.report.pixels import Rgb

CELL_INCHES = 2.0
DPI = 130
FONT_POINTS = 9
LONGEST_NAME = 26
MAP = "viridis"  # perceptually uniform, and read alike by colour-blind eyes
STYLE: dict[Any, Any] = {"text.parse_math": False, "font.family": "sans-serif", "font.size": FONT_POINTS}


class Sheet:
    """A figure of `rows` x `columns` pictures without axes; `write` saves it."""

    def __init__(
        self, rows: int, columns: int, *, title: str = "", cell: tuple[float, float] = (CELL_INCHES, CELL_INCHES)
    ) -> None:
        with mpl.rc_context(STYLE):
            self.figure = Figure(figsize=(columns * cell[0], rows * cell[1] + 0.5), layout="constrained", dpi=DPI)
            FigureCanvasAgg(self.figure)
            self.axes: NDArray[Any] = self.figure.subplots(rows, columns, squeeze=False)
            for axes in self.axes.flat:
                axes.set_axis_off()
            if title:
                self.figure.suptitle(title, fontsize=FONT_POINTS + 1)

    def show(
        self, row: int, column: int, picture: Rgb, *, title: str = "", smooth: bool = False, left: bool = False
    ) -> Axes:
        """Put a picture into a place and return it for more; cells of maps stay squares unless `smooth`.

        A title that is wider than the picture starts at its `left`.
        """
        axes: Axes = self.axes[row, column]
        axes.imshow(picture, interpolation="antialiased" if smooth else "nearest")
        if title:
            with mpl.rc_context(STYLE):
                axes.set_title(title, fontsize=FONT_POINTS, loc="left" if left else "center")
        return axes

    def scale(self, low: float, high: float, label: str) -> None:
        """Add a bar that says what the colours of `MAP` mean."""
        mappable = ScalarMappable(Normalize(low, high), MAP)
        self.figure.colorbar(mappable, ax=list(self.axes.flat), label=label, shrink=0.6, aspect=30)

    def save(self, file: Path | IO[bytes]) -> None:
        """Save as PNG into a file, opened or not."""
        with mpl.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # names in any script
            self.figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})

    def write(self, path: Path) -> Path:
        """Save as PNG and return the path."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.save(path)
        except OSError as error:
            raise DovetailError(f"Cannot write {path}: {error.strerror}; choose another folder for --out.") from None
        return path


def short(name: str) -> str:
    """Return a file's own name for a title: printable, and cut in its middle where it is long."""
    name = "".join(sign if sign.isprintable() else "?" for sign in Path(name).name.encode("utf-8", "replace").decode())
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half + 1 :]}"


def heat(weights: NDArray[np.floating]) -> Rgb:
    """Return weights [h, w] in the colours of `MAP`, the largest at its bright end."""
    top = float(weights.max())
    coloured = mpl.colormaps[MAP](weights / top if top > 0 else weights)
    pixels: Rgb = (coloured[..., :3] * 255).round().astype(np.uint8)
    return pixels


def enlarged_to(picture: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Return a picture [h, w, ...] with each cell spread over the pixels that it covers."""
    rows = np.arange(height) * picture.shape[0] // height
    columns = np.arange(width) * picture.shape[1] // width
    spread: NDArray[Any] = picture[rows][:, columns]
    return spread


def blended(photograph: Rgb, colours: Rgb, *, share: float = 0.55) -> Rgb:
    """Return colours [h, w, 3] laid over a greyed photograph [H, W, 3]."""
    height, width = photograph.shape[:2]
    grey = photograph.mean(axis=2, keepdims=True)
    mixed: Rgb = np.round((1 - share) * grey + share * enlarged_to(colours, height, width)).astype(np.uint8)
    return mixed


def rows_of(items: Sequence[Any], least: int, what: str) -> None:
    """Raise `DovetailError` where there are too few photographs for a picture."""
    if len(items) < least:
        raise DovetailError(f"{what} needs at least {least} readable photographs and found {len(items)}; add some.")
