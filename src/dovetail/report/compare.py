"""`compare`: results and curves side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dovetail.errors import OptionsError, RunError
from dovetail.options import Options, option, takes

if TYPE_CHECKING:
    from dovetail.downstream.table.results import Results, Row


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """Options of `dovetail compare`."""

    results: Sequence[str] = option(
        (),
        "Folders with a results.json, or run folders that contain such folders, as in `dovetail compare runs/*`.",
        positional=True,
    )
    out: str | Path | None = option(
        None,
        "Page to write, such as comparison.html, with scores, intervals and the curves of every run. It opens offline.",
    )


@takes(CompareOptions)
def compare(options: CompareOptions) -> dict[str, list[Row]]:
    """Print the results of several runs side by side, a table for each task, and draw their curves.

    Returns:
        The rows of each task, the run's name among their settings.

    Raises:
        DovetailError: Where nothing was named, there are neither results nor curves, or the page cannot be written.
    """
    from dovetail.downstream.table.results import RESULTS, print_table
    from dovetail.train.logs import METRICS

    if not options.results:
        raise OptionsError("No results were named; give folders, as in `dovetail compare runs/*`.")
    if options.out is not None and Path(options.out).suffix != ".html":
        raise OptionsError(f"{options.out} must end in .html; rename it.")
    folders = [Path(name) for name in dict.fromkeys(options.results)]
    tables, notes = read_tables(folders)
    runs = [folder for folder in folders if (folder / METRICS).is_file()]
    if not tables and (options.out is None or not runs):
        raise RunError(f"None of the {len(folders)} folders holds a {RESULTS}; evaluate or fine-tune first.")
    for task, rows in tables.items():
        print_table(task, rows)
    for note in notes:
        print(note)
    if options.out is not None:
        from dovetail.report.compare_page import write_comparison

        write_comparison(Path(options.out), tables, notes, runs)
        print(options.out)
    return tables


def read_tables(folders: list[Path]) -> tuple[dict[str, list[Row]], list[str]]:
    """Return the rows of each task found in folders, and sentences to read with them.

    Raises:
        DovetailError: For a folder that is not there, or a file that holds no results.
    """
    from dovetail.downstream.table.results import Row, read_results

    results = [(run, read_results(file)) for file, run in named_files(folders).items()]
    prints: dict[str, set[str]] = {}
    for _, found in results:
        prints.setdefault(found.task, set()).add(str(found.data.get("fingerprint")))
    tables: dict[str, list[Row]] = {}
    for run, found in results:
        of = {"data": data_name(found)} if len(prints[found.task]) > 1 else {}
        rows = [Row({"run": run, **of, **row.setting}, row.scores) for row in found.rows]
        tables.setdefault(found.task, []).extend(rows)
    notes = [
        f"The runs of '{task}' were measured on different data; compare only numbers with the same 'data'."
        for task, several in prints.items()
        if len(several) > 1
    ]
    return tables, notes


def data_name(results: Results) -> str:
    """Return what to call the data of results: its folder's name, and the beginning of its fingerprint."""
    return f"{Path(str(results.config.get('data', ''))).name} {str(results.data.get('fingerprint'))[:4]}".strip()


def named_files(folders: list[Path]) -> dict[Path, str]:
    """Return each file of results in folders and what to call it: by its folder, by its path where several are alike.

    Raises:
        RunError: For a folder that is not there.
    """
    from dovetail.downstream.table.results import RESULTS

    names: dict[Path, str] = {}
    for folder in folders:
        if not folder.exists():
            named = str(folder).replace("\n", "\\n")  # a sentence has one line
            raise RunError(f"There is no file or folder {named}; name folders with a {RESULTS}.")
        if folder.is_file() and folder.suffix != ".json":
            continue  # `runs/*` names whatever lies there, such as the page of an earlier comparison
        files = [folder] if folder.is_file() else sorted({*folder.glob(RESULTS), *folder.glob(f"*/{RESULTS}")})
        for file in files:
            in_run = folder.is_dir() and file.parent != folder
            names.setdefault(
                file, f"{folder.absolute().name}/{file.parent.name}" if in_run else file.absolute().parent.name
            )
    counts = Counter(names.values())
    return {file: name if counts[name] == 1 else file.parent.as_posix() for file, name in names.items()}
