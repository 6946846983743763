"""`compare`: prints the results of several runs and draws their curves."""

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
        "Output page, such as comparison.html, with scores, confidence intervals and curves of all runs. It needs no "
        "network.",
    )


@takes(CompareOptions)
def compare(options: CompareOptions) -> dict[str, list[Row]]:
    """Print the results of several runs side by side, one table per task, and draw their curves.

    Returns:
        The rows of each task. Their settings contain the name of the run.

    Raises:
        DovetailError: No folders are specified, they contain neither results nor curves, or the page cannot be written.
    """
    from dovetail.downstream.table.results import RESULTS, print_table
    from dovetail.train.logs import METRICS

    if not options.results:
        raise OptionsError("results is missing; specify folders, as in `dovetail compare runs/*`.")
    if options.out is not None and Path(options.out).suffix != ".html":
        raise OptionsError(f"--out {options.out} has an unsupported suffix; expected .html.")
    folders = [Path(name) for name in dict.fromkeys(options.results)]
    tables, notes = read_tables(folders)
    runs = [folder for folder in folders if (folder / METRICS).is_file()]
    if not tables and (options.out is None or not runs):
        raise RunError(f"Found no {RESULTS} in the {len(folders)} folders; evaluate or fine-tune first.")
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
    """Return the rows of each task in the folders, and notes on them.

    Raises:
        DovetailError: A folder does not exist, or a file contains no results.
    """
    from dovetail.downstream.table.results import Row, read_results

    named = named_files(folders)
    results = [(run, read_results(file)) for file, run in named.items()]
    prints: dict[str, set[str]] = {}
    for _, found in results:
        prints.setdefault(found.task, set()).add(str(found.data.get("fingerprint")))
    tables: dict[str, list[Row]] = {}
    former = former_weights([(file, found) for file, (_, found) in zip(named, results, strict=True)])
    for file, (run, found) in zip(named, results, strict=True):
        of = {"data": data_name(found)} if len(prints[found.task]) > 1 else {}
        of |= {"weights": "former"} if file in former else {}
        rows = [Row({"run": run, **of, **row.setting}, row.scores) for row in found.rows]
        tables.setdefault(found.task, []).extend(rows)
    notes = [
        f"The runs of '{task}' were evaluated on different data; compare only scores with the same 'data'."
        for task, several in prints.items()
        if len(several) > 1
    ]
    notes += [
        f"{file} has the scores of former weights: {run} has been trained further or anew since; run its command again."
        for file, run in former.items()
    ]
    return tables, notes


def former_weights(results: Sequence[tuple[Path, Results]]) -> dict[Path, Path]:
    """Return the results files that were measured with other weights than their run has now, with the run's folder."""
    from dovetail.downstream.start import file_mark
    from dovetail.weights.exported import model_file_in

    marks: dict[Path, str] = {}
    found: dict[Path, Path] = {}
    for file, result in results:
        mark, run = result.config.get("resolved_weights"), run_of(file, result)
        weights = None if run is None else model_file_in(run)
        if run is None or weights is None or mark is None:
            continue
        if marks.setdefault(weights, file_mark(weights)) != mark:
            found[file] = run
    return found


def run_of(file: Path, results: Results) -> Path | None:
    """Return the folder of the run that was evaluated: the one that contains the results, or that of its path."""
    named = results.config.get("run")
    if not isinstance(named, str):
        return None
    around, name = file.absolute().parent.parent, Path(named).name
    if name in (around.name, "", ".."):  # its folder may have moved
        return around
    return Path(named) if Path(named).is_dir() else None


def data_name(results: Results) -> str:
    """Return a short name of the dataset: the name of its folder and the start of its fingerprint."""
    return f"{Path(str(results.config.get('data', ''))).name} {str(results.data.get('fingerprint'))[:4]}".strip()


def named_files(folders: list[Path]) -> dict[Path, str]:
    """Return each results file with a name: that of its folder, or its path if several folders have the same name.

    Raises:
        RunError: A folder does not exist.
    """
    from dovetail.downstream.table.results import RESULTS

    names: dict[Path, str] = {}
    for folder in folders:
        if not folder.exists():
            named = str(folder).replace("\n", "\\n")  # a message has one line
            raise RunError(f"The file or folder {named} does not exist; specify folders with a {RESULTS}.")
        if folder.is_file() and folder.suffix != ".json":
            continue  # `runs/*` may match other files, such as the page of an earlier comparison
        files = [folder] if folder.is_file() else sorted({*folder.glob(RESULTS), *folder.glob(f"*/{RESULTS}")})
        for file in files:
            in_run = folder.is_dir() and file.parent != folder
            names.setdefault(
                file, f"{folder.absolute().name}/{file.parent.name}" if in_run else file.absolute().parent.name
            )
    counts = Counter(names.values())
    return {file: name if counts[name] == 1 else file.parent.as_posix() for file, name in names.items()}
