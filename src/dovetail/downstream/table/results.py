"""What a measurement leaves: results.json, and a table on the terminal.

    results.json: {format, task, rows: [{setting, scores: {name: {mean, deviation, low, high, values}}}],
                   config, seed, versions, device, data: {fingerprint, ...}, notes}

`low` and `high` bound the score with 95 % by bootstrap: over seeds from three on, of one trial over test images; two
seeds have no interval, nor has a single trial's average precision. The fingerprint is the same wherever a copy of the
data lies; see `fingerprint` for what it covers.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from dovetail.errors import DataError, RunError, counted, printable
from dovetail.files.durable import write_whole
from dovetail.files.schema import converted, read_json

RESULTS = "results.json"
PHOTOGRAPHS = frozenset({".jpg", ".jpeg", ".webp"})  # no labels, and as many that to open them all takes minutes
SAMPLED = frozenset({".png", ".arrow"})  # large tables, and PNG, which ends with a checksum of all its pixels
END_BYTES = 4096
FEWEST_DRAWN = 3  # values that an interval is drawn from
STATE = "state.json"  # beside the tables of a saved Hugging Face dataset, with the library's fingerprint of their rows
LIBRARIES = ("dovetail-ssl", "torch", "torchvision", "timm", "segmentation-models-pytorch", "faster-coco-eval", "numpy")


@dataclass(frozen=True)
class Score:
    """A number with its spread: shares in [0, 1].

    Attributes:
        mean: Over the values.
        values: One for each seed.
        deviation: Standard deviation over seeds (n - 1); None for a single one.
        low, high: 95 % bootstrap interval of the mean; None where there is nothing to draw from.
    """

    mean: float
    values: tuple[float, ...]
    deviation: float | None = None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        text = f"{100 * self.mean:.2f}"
        if self.deviation is not None:
            text += f" ± {100 * self.deviation:.2f}"
        if self.low is not None and self.high is not None:
            text += f" [{100 * self.low:.2f}, {100 * self.high:.2f}]"
        return text


@dataclass(frozen=True)
class Row:
    """One line of the table: what was set, and the scores there."""

    setting: Mapping[str, Any]
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Results:
    """All that a measurement found.

    Attributes:
        task: Such as "evaluate knn".
        rows: The table.
        config: Options, resolved.
        data: Fingerprint and sizes of the data.
        device: Where it was computed.
        notes: Sentences to read with the numbers.
        details: Further plain values, such as the score of each class.
        versions: Of the libraries.
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
        """Return plain values, as `Saved`."""
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
        """Write results.json into `out` and print the table; return the file."""
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
    """Read a results.json, named itself or by its folder.

    Raises:
        RunError: Where there is none, or something else.
    """
    path = Path(folder)
    path = path / RESULTS if path.is_dir() else path
    try:
        content = read_json(path, "measure again")
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); name a folder with a {RESULTS}.") from error
    found = converted(content, Saved, f"{path} holds no results of this program: it", "measure again", closed=True)
    rows = tuple(
        Row(row.setting, {name: without_interval_of_two(score) for name, score in row.scores.items()})
        for row in found["rows"]
    )
    notes = tuple(found["notes"])
    return Results(found["task"], rows, found["config"], found["data"], found["device"], notes, found["versions"])


def without_interval_of_two(score: Score) -> Score:
    """Return a score that was read; intervals of two values, which older files have, are left out."""
    return replace(score, low=None, high=None) if 1 < len(score.values) < FEWEST_DRAWN else score


def over_seeds(values: Sequence[float], *, seed: int = 0) -> Score:
    """Return the score of one value for each seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Score(mean, tuple(values))
    low, high = interval_of(np.asarray(values, dtype=float), seed=seed) or (None, None)
    return Score(mean, tuple(values), float(np.std(values, ddof=1)), low, high)


def one_value(value: float, interval: tuple[float, float] | None = None) -> Score:
    """Return the score of a single trial, with the interval of another draw of test images where there is one."""
    low, high = interval or (None, None)
    return Score(value, (value,), None, low, high)


def over_images(right: np.ndarray[Any, Any], *, seed: int = 0) -> Score:
    """Return the mean of one number for each image, with the interval of another draw of images."""
    return one_value(float(right.mean()), interval_of(right.astype(float), seed=seed))


def interval_of(values: np.ndarray[Any, Any], *, seed: int = 0) -> tuple[float, float] | None:
    """Return the bootstrap interval of the mean; None for so few values that it would be their smallest and largest."""
    return bootstrap(values, seed=seed) if len(values) >= FEWEST_DRAWN else None


def bootstrap(values: np.ndarray[Any, Any], *, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of `values` under resampling.

    Shares of right and wrong answers are drawn from their binomial, which is the same and quicker.
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
    """Return one row for each start, its first score at each number of images side by side; other tables as they are.

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
    """Print rows with all their settings and scores, in per cent; where that is too wide, a line for each score."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False)  # names of classes and folders are shown as they are
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
        if not console.is_terminal:  # a file or a pipe has no width that words must be broken for
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
    """Return what the signs beside scores mean; nothing where there are none."""
    parts = []
    if any(score.deviation is not None for score in scores):
        parts.append("± is the standard deviation over seeds")
    over = [
        words
        for words, some in (
            ("over seeds", any(score.low is not None and len(score.values) > 1 for score in scores)),
            (
                "of one trial over test images",
                any(score.low is not None and len(score.values) == 1 for score in scores),
            ),
        )
        if some
    ]
    if over:
        parts.append(f"[ , ] is the 95 % bootstrap interval of the mean, {' and '.join(over)}")
    if any(len(score.values) == 2 for score in scores):
        parts.append("two seeds give no interval")
    return f"{'; '.join(parts)}." if parts else ""


def shown(value: Any) -> str:
    """Return a setting as text."""
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else printable(str(value))


def fingerprint(paths: Iterable[Path]) -> str:
    """Return a hash over the names (folder and file), sizes and content of files, whatever folder the set lies in.

    Of what may hold labels (JSON files, TIFF and BMP masks) all the content counts, of PNG files the first and last
    4 KiB, for a change that leaves both and the size as they were is hardly possible, of images that cannot be
    masks (JPEG, WebP) none; of the tables of a saved Hugging Face dataset their ends and the file beside them that
    knows of every change.

    Raises:
        DataError: For a file that cannot be read.
    """
    every = set(paths)
    every |= {path.with_name(STATE) for path in every if path.suffix == ".arrow" and path.with_name(STATE).is_file()}
    lines = sorted(f"{path.parent.name}/{path.name} {content_mark(path)}" for path in every)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def content_mark(path: Path) -> str:
    """Return a file's size and the hash of what `fingerprint` reads of it."""
    try:
        if path.suffix.lower() in PHOTOGRAPHS:
            return str(path.stat().st_size)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if path.suffix.lower() not in SAMPLED:
                return f"{size} {hashlib.file_digest(file, 'sha256').hexdigest()}"
            first = file.read(END_BYTES)
            file.seek(max(size - END_BYTES, 0))
            return f"{size} {hashlib.sha256(first + file.read()).hexdigest()}"
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); replace it or take it away.") from error


def library_versions() -> dict[str, str]:
    """Return the versions of what computed the numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
