"""`compare`: results side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dovetail.errors import DovetailError

if TYPE_CHECKING:
    from dovetail.transfer.results import Row


def compare(results: list[str] = []) -> dict[str, list[Row]]:  # noqa: B006 - read only
    """Print the results of several runs side by side, a table for each task.

    Args:
        results: Folders with a results.json, or of runs with such folders in them, as in `dovetail compare runs/*`.

    Returns:
        The rows of each task, the run's name among their settings.

    Raises:
        DovetailError: Where nothing was named or there are no results.
    """
    from dovetail.transfer.results import RESULTS, Row, print_table, read_results

    if not results:
        raise DovetailError("No results were named; give folders, as in `dovetail compare runs/*`.")
    tables: dict[str, list[Row]] = {}
    prints: dict[str, set[str]] = {}
    for name in results:
        folder = Path(name)
        if not folder.exists():
            raise DovetailError(f"There is no file or folder {folder}; name folders with a {RESULTS}.")
        files = [folder] if folder.is_file() else sorted({*folder.glob(RESULTS), *folder.glob(f"*/{RESULTS}")})
        for file in files:
            found = read_results(file)
            run = folder.name if file.parent == folder or folder.is_file() else f"{folder.name}/{file.parent.name}"
            rows = [Row({"run": run, **row.setting}, row.scores) for row in found.rows]
            tables.setdefault(found.task, []).extend(rows)
            prints.setdefault(found.task, set()).add(str(found.data.get("fingerprint")))
    if not tables:
        raise DovetailError(f"None of the {len(results)} folders holds a {RESULTS}; evaluate or fine-tune first.")
    for task, rows in tables.items():
        print_table(task, rows)
        if len(prints[task]) > 1:
            print(f"The runs of '{task}' were measured on different data; their numbers do not compare.")
    return tables
