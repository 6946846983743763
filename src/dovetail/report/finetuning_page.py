"""The page of a fine-tuning, and its results on the page of the run that it started from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup
from PIL import Image

from dovetail.downstream.examples import EXAMPLES, LISTED
from dovetail.downstream.finished import read_task
from dovetail.downstream.segment.colours import palette
from dovetail.downstream.table.results import Results, by_start, legend, shown
from dovetail.files.schema import parsed
from dovetail.files.writing import writing
from dovetail.report.compare_page import table, task
from dovetail.report.history import Series
from dovetail.report.page import PAGE
from dovetail.report.pixels import jpeg_uri
from dovetail.report.plots import Plot, draw
from dovetail.report.templating import filled, replace_file

MOST_NAMED = 24  # classes in a legend
RESULTS, LINK = "results", "results link"  # places in a run's page


def write_pages(out: Path, results: Results, run: Path | None) -> list[Path]:
    """Write the page of a fine-tuning to `out`, and add its results to the page of its run if `out` is inside the run.

    Returns:
        Paths of the pages.

    Raises:
        DovetailError: A page cannot be written.
    """
    page = out / PAGE
    with writing(page, option="out"):
        replace_file(page, rendered(out, results))
    pages = [page]
    if run is not None and (run / PAGE).is_file() and run.resolve() in out.resolve().parents:
        pages += [run / PAGE] * add_results(run / PAGE, out, results)
    return pages


def rendered(out: Path, results: Results) -> str:
    """Return the HTML of a fine-tuning page."""
    curves = plots(results)
    return filled(
        "finetuning.html.j2",
        title=title_of(results),
        written=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        section=Markup(section(RESULTS, out, results)),
        curves=[(plot.title, Markup(draw(plot, name=f"curve{number}"))) for number, plot in enumerate(curves)],
        scores=task(results.task, 0, results.rows),
        options={name: shown(value) for name, value in results.config.items()},
        data={name: shown(value) for name, value in results.data.items()},
    )


def title_of(results: Results) -> str:
    """Return a title such as "Fine-tuning, segment"."""
    return f"Fine-tuning, {results.task.removeprefix('finetune ')}"


def section(id: str, out: Path, results: Results, *, link: str = "") -> str:
    """Return the results section of a page: notes, table, and some test images."""
    rows = by_start(results.rows)
    return filled(
        "results.html.j2",
        id=id,
        title=title_of(results),
        notes=results.notes,
        table=table(rows),
        legend=legend([score for row in rows for score in row.scores.values()]),
        examples=examples(out),
        classes=classes(out) if results.task == "finetune segment" else [],
        link=link,
    )


def examples(out: Path) -> list[dict[str, str]]:
    """Return the example images of a fine-tuning: caption and data URI."""
    folder = out / EXAMPLES
    listed = parsed((folder / LISTED).read_bytes(), list[dict[str, str]]) if (folder / LISTED).is_file() else None
    return [
        {"caption": one["caption"], "uri": jpeg_uri(np.asarray(Image.open(folder / one["file"]).convert("RGB")))}
        for one in listed or ()
    ]


def classes(out: Path) -> list[tuple[str, str]]:
    """Return the name and colour of each class, or nothing if there are too many to distinguish."""
    names = read_task(out).names
    if len(names) > MOST_NAMED:
        return []
    colours = palette(len(names))
    return [(name, "rgb({}, {}, {})".format(*colours[3 * at : 3 * at + 3])) for at, name in enumerate(names)]


def plots(results: Results) -> list[Plot]:
    """Return the curves of the first seed: a plot of the loss and one of the score for each number of images."""
    curves: Sequence[Mapping[str, Any]] = results.details.get("curves", ())
    score = next(iter(results.rows[0].scores))
    images = {row.setting.get("fraction"): int(row.setting["images"]) for row in results.rows}
    starts = list(dict.fromkeys(str(one["start"]) for one in curves))
    found = []
    for fraction, count in images.items():
        some = [one for one in curves if one["fraction"] == fraction]
        losses = [series(one, "loss") for one in some]
        scores = [series(one, "validation") for one in some]
        found.append(Plot(f"Loss, {count:,} labelled images", "loss (no unit)", losses, order=starts))
        title = f"{score} on some test images, {count:,} labelled images"
        found.append(Plot(title, f"{score} (0 to 1)", scores, from_zero=True, order=starts))
    return [plot for plot in found if any(line.values for line in plot.lines)]


def series(curve: Mapping[str, Any], of: str) -> Series:
    """Return a curve of a start as a line of a plot."""
    points = curve[of]
    return Series(str(curve["start"]), tuple(step for step, _ in points), tuple(value for _, value in points))


def add_results(page: Path, out: Path, results: Results) -> bool:
    """Add results to a run's page, and replace earlier results of the same folder.

    Returns:
        Whether the page supports this. Pages of older versions do not.
    """
    text = page.read_text(encoding="utf-8")
    if any(f"<!-- {place} -->" not in text or f"<!-- end of {place} -->" not in text for place in (RESULTS, LINK)):
        return False
    where = out.resolve().relative_to(page.parent.resolve()).as_posix()
    key = "results-" + re.sub(r"[^a-z0-9]+", "-", where.lower()).strip("-")
    block = f"<!-- {key} -->{section(key, out, results, link=quote(f'./{where}/{PAGE}'))}<!-- end of {key} -->"
    link = f'<!-- link of {key} --><li><a href="#{key}">{title_of(results)}</a></li><!-- end of link of {key} -->'
    for place, content, own in ((RESULTS, block, key), (LINK, link, f"link of {key}")):
        head, rest = text.split(f"<!-- {place} -->", 1)
        before, tail = rest.split(f"<!-- end of {place} -->", 1)
        others = re.sub(rf"<!-- {own} -->.*?<!-- end of {own} -->", "", before, flags=re.DOTALL)
        text = f"{head}<!-- {place} -->{others}{content}<!-- end of {place} -->{tail}"
    with suppress(OSError):  # a read-only run
        replace_file(page, text)
        return True
    return False
