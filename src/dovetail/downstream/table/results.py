"""Results of an evaluation: results.json, and a table on the terminal.

    results.json: {format, task, rows: [{setting, scores: {name: {mean, values, deviation, low, high, over}}}],
                   config, seed, versions, device, data: {fingerprint, ...}, notes}

`low` and `high` are the 95 % interval of the mean, and `over` says over what: Student's t over three or more seeds, or
a bootstrap over test images (or sequences). Fine-tunings with two seeds have no interval, and neither has the average
precision of a single trial. The fingerprint does not depend on the folder of the data; see `fingerprint` for what it
covers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np

from dovetail.errors import DataError, RunError, counted, printable
from dovetail.files.durable import write_whole
from dovetail.files.schema import converted, read_json

RESULTS = "results.json"
IMAGES = frozenset({".jpg", ".jpeg", ".webp"})  # never masks, and so many that opening all of them takes minutes
SAMPLED = frozenset({".png", ".arrow"})  # large tables, and PNG, which ends with a checksum of all its pixels
END_BYTES = 4096
FEWEST_DRAWN = 3  # smallest number of values for an interval
STATE = "state.json"  # in a saved Hugging Face dataset, with the library's fingerprint of the rows
LIBRARIES = ("dovetail-ssl", "torch", "torchvision", "timm", "segmentation-models-pytorch", "faster-coco-eval", "numpy")

Over = Literal["seeds", "images", "sequences"]
INTERVALS: dict[Over, str] = {
    "seeds": "over seeds (Student's t)",
    "images": "over test images (bootstrap)",
    "sequences": "over test sequences (bootstrap)",
}


@dataclass(frozen=True)
class Score:
    """A score in [0, 1] with its spread.

    Attributes:
        mean: Mean of the values.
        values: One value per seed.
        deviation: Standard deviation over seeds (n - 1), or None for a single seed.
        low, high: 95 % interval of the mean, or None if there are too few values.
        over: What the interval is over, or None without an interval.
    """

    mean: float
    values: tuple[float, ...]
    deviation: float | None = None
    low: float | None = None
    high: float | None = None
    over: Over | None = None

    def __str__(self) -> str:
        text = f"{100 * self.mean:.2f}"
        if self.deviation is not None:
            text += f" (SD {100 * self.deviation:.2f})"
        if self.low is not None and self.high is not None:
            text += f" [{100 * self.low:.2f}, {100 * self.high:.2f}]"
        return text


@dataclass(frozen=True)
class Row:
    """A row of the table: settings and scores."""

    setting: Mapping[str, Any]
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Results:
    """The results of an evaluation.

    Attributes:
        task: Name of the task, such as "evaluate knn".
        rows: Rows of the table.
        config: Resolved options.
        data: Fingerprint and sizes of the data.
        device: Device of the evaluation.
        notes: Notes on the scores.
        details: Further plain values, such as the score of each class.
        versions: Versions of the libraries.
    """

    task: str
    rows: tuple[Row, ...]
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    device: str
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=lambda: library_versions())
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values with the fields of `Saved`."""
        rows = [
            {"setting": dict(row.setting), "scores": {name: vars(score) for name, score in row.scores.items()}}
            for row in self.rows
        ]
        return {
            "format": 1,
            "task": self.task,
            "rows": rows,
            "config": dict(self.config),
            "seed": self.config.get("seed"),
            "versions": dict(self.versions),
            "device": self.device,
            "data": dict(self.data),
            "notes": list(self.notes),
            "details": dict(self.details),
        }

    def write(self, out: Path) -> Path:
        """Write results.json to `out`, print the table, and return the path of the file."""
        out.mkdir(parents=True, exist_ok=True)
        path = out / RESULTS
        write_whole(path, json.dumps(self.as_dict(), indent=2, default=str) + "\n")
        print_table(self.task, by_start(self.rows))
        for note in self.notes:
            print(note)
        print(path)
        return path


class Saved(TypedDict):
    """The fields of a results.json."""

    format: NotRequired[int]
    task: str
    rows: list[Row]
    config: dict[str, Any]
    seed: NotRequired[Any]
    versions: dict[str, str]
    device: str
    data: dict[str, Any]
    notes: list[str]
    details: NotRequired[dict[str, Any]]


def read_results(folder: str | Path) -> Results:
    """Read a results.json, specified by its path or folder.

    Raises:
        RunError: The file does not exist or has other contents.
    """
    path = Path(folder)
    path = path / RESULTS if path.is_dir() else path
    try:
        content = read_json(path, "measure again")
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); specify a folder with a {RESULTS}.") from error
    found = converted(content, Saved, f"{path} contains no results of Dovetail: it", "measure again", closed=True)
    rows = tuple(
        Row(row.setting, {name: with_own_interval(score, found["task"]) for name, score in row.scores.items()})
        for row in found["rows"]
    )
    notes, details = tuple(found["notes"]), found.get("details", {})
    return Results(
        found["task"], rows, found["config"], found["data"], found["device"], notes, found["versions"], details
    )


def with_own_interval(score: Score, task: str) -> Score:
    """Return the score of an older file, which does not say what its interval is over, as it is computed now.

    Those of evaluations are over test images. Those of other tasks were a bootstrap over two and more seeds.
    """
    if score.over is not None or score.low is None:
        return score
    if len(score.values) > 1 and not task.startswith("evaluate "):
        return over_seeds(score.values)
    return replace(score, over="images")


def over_seeds(values: Sequence[float]) -> Score:
    """Return the score of values in [0, 1] over seeds, with Student's interval within [0, 1] from three seeds on."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Score(mean, tuple(values))
    deviation = float(np.std(values, ddof=1))
    if len(values) < FEWEST_DRAWN:
        return Score(mean, tuple(values), deviation)
    half = half_width(deviation, len(values))
    low, high = (float(np.clip(end, 0.0, 1.0)) for end in (mean - half, mean + half))
    return Score(mean, tuple(values), deviation, low, high, "seeds")


def half_width(deviation: float, count: int) -> float:
    """Return half the width of Student's 95 % interval of a mean of `count` values."""
    from scipy.stats import t  # slow to import

    return float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)


def one_value(value: float, interval: tuple[float, float] | None = None) -> Score:
    """Return the score of a single trial, with its interval over test images if there is one."""
    return Score(value, (value,)) if interval is None else Score(value, (value,), None, *interval, "images")


def over_images(right: np.ndarray[Any, Any], *, seed: int = 0) -> Score:
    """Return the mean of one value per image, with its bootstrap interval over images."""
    return one_value(float(right.mean()), interval_of(right.astype(float), seed=seed))


def interval_of(values: np.ndarray[Any, Any], *, seed: int = 0) -> tuple[float, float] | None:
    """Return the bootstrap interval of the mean, or None if there are too few values."""
    return bootstrap(values, seed=seed) if len(values) >= FEWEST_DRAWN else None


def bootstrap(values: np.ndarray[Any, Any], *, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of `values` under resampling.

    For values of 0 and 1, the means are drawn from a binomial distribution, which is equivalent and faster.
    """
    rng = np.random.default_rng((seed, 3))
    count = len(values)
    if set(np.unique(values).tolist()) <= {0.0, 1.0}:
        means = rng.binomial(count, values.mean(), size=draws) / count
    else:
        means = np.array([values[rng.integers(count, size=count)].mean() for _ in range(draws)])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def by_start(rows: Sequence[Row]) -> Sequence[Row]:
    """Return one row per start, with its first score at each number of images. Other tables are returned unchanged.

    All scores are in results.json.
    """
    starts = dict.fromkeys(str(row.setting.get("start")) for row in rows)
    if len(starts) < 2 or any(not {"start", "images"} <= row.setting.keys() or not row.scores for row in rows):
        return rows
    main = next(iter(rows[0].scores))
    found: dict[str, dict[str, Score]] = {start: {} for start in starts}
    for row in rows:
        images = f"{main}, {counted(int(row.setting['images']), 'image')}"
        found[str(row.setting["start"])] |= {images: row.scores[main]} if main in row.scores else {}
    return [Row({"start": start}, scores) for start, scores in found.items()]


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print rows with all their settings and scores in per cent. A table that is too wide gets a line per score."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False)  # names of classes and folders are printed verbatim
    settings = list(dict.fromkeys(name for row in rows for name in row.setting))
    scores = list(dict.fromkeys(name for row in rows for name in row.scores))
    lines = [
        [*(shown(row.setting.get(name)) for name in settings), *(str(row.scores.get(name, "-")) for name in scores)]
        for row in rows
    ]
    heads = [printable(name) for name in (*settings, *scores)]
    widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(len(heads))]
    if sum(widths) + 3 * len(widths) + 1 > console.width:  # rich would cut numbers off
        heads = [*map(printable, settings), "score", "value"]
        count = len(settings)
        lines = [
            [*line[:count], printable(name), value]
            for line in lines
            for name, value in zip(scores, line[count:], strict=True)
            if value != "-"
        ]
        widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(len(heads))]
        if not console.is_terminal:  # files and pipes have no limited width
            console.width = max(console.width, sum(widths) + 3 * len(widths) + 1)
    table = Table(title=f"{printable(title)} (per cent)")
    for name in heads:
        table.add_column(name, justify="left" if name in (*settings, "score") else "right", overflow="fold")
    for line in lines:
        table.add_row(*line)
    console.print(table)
    if told := legend([score for row in rows for score in row.scores.values()]):
        print(told)


def legend(scores: Sequence[Score]) -> str:
    """Return an explanation of the signs in the scores, or an empty string."""
    parts = []
    if any(score.deviation is not None for score in scores):
        parts.append("SD is the standard deviation over seeds")
    over = [words for name, words in INTERVALS.items() if any(score.over == name for score in scores)]
    if over:
        parts.append(f"[ , ] is the 95 % interval of the mean {' or '.join(over)}")
    if any(len(score.values) == 2 and score.low is None for score in scores):
        parts.append("two seeds give no interval")
    return f"{'; '.join(parts)}." if parts else ""


def shown(value: Any) -> str:
    """Return a setting as text."""
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else printable(str(value))


def fingerprint(paths: Iterable[Path], content: Iterable[str] = ()) -> str:
    """Return a hash of the names (folder and file), sizes and content of files. It does not depend on their location.

    Files that may contain labels (JSON, TIFF and BMP masks) are hashed completely. PNG files are hashed by their first
    and last 4 KiB, as these change with any pixel. The content of images that cannot be masks (JPEG, WebP) is not
    hashed. Tables of a saved Hugging Face dataset are hashed by their ends and by the library's state file. `content`
    has the hashes of data without files.

    Raises:
        DataError: A file cannot be read.
    """
    every = set(paths)
    every |= {path.with_name(STATE) for path in every if path.suffix == ".arrow" and path.with_name(STATE).is_file()}
    lines = [*sorted(f"{path.parent.name}/{path.name} {content_mark(path)}" for path in every), *content]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def content_mark(path: Path) -> str:
    """Return the size of a file and the hash of its content, as `fingerprint` defines."""
    try:
        if path.suffix.lower() in IMAGES:
            return str(path.stat().st_size)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if path.suffix.lower() not in SAMPLED:
                return f"{size} {hashlib.file_digest(file, 'sha256').hexdigest()}"
            first = file.read(END_BYTES)
            file.seek(max(size - END_BYTES, 0))
            return f"{size} {hashlib.sha256(first + file.read()).hexdigest()}"
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); replace or remove it.") from error


def library_versions() -> dict[str, str]:
    """Return the versions of the main packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
