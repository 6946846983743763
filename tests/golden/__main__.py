"""`python -m tests.golden DIR`: one line a file, non-zero when anything differs or a built method is unchecked."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.golden.vectors import Comparison, Golden, read_folder


def check_for(group: str) -> Callable[[Golden], Iterable[Comparison]] | None:
    """Return `tests.golden.check_GROUP.check`, or None where the group has no check yet."""
    name = f"tests.golden.check_{group}"
    if importlib.util.find_spec(name) is None:
        return None
    check: Callable[[Golden], Iterable[Comparison]] = importlib.import_module(name).check
    return check


def is_built(group: str) -> bool:
    """Whether the table of recipes has the group's method, so that a missing check is a fault."""
    from dovetail.recipes.table import METHODS

    return group.replace("_", "-") in METHODS


def run_file(golden: Golden) -> tuple[str, bool]:
    """Return the line to print for a file, and whether it is in order."""
    group = golden.name.rsplit("_", 1)[0]
    check = check_for(group)
    if check is None:
        return (f"{golden.name}: UNCHECKED", False) if is_built(group) else (f"{golden.name}: not built yet", True)
    try:
        comparisons = list(check(golden))
    except Exception as error:  # the other files are still to be checked
        traceback.print_exc()
        return f"{golden.name}: FAILED with {type(error).__name__}: {error}", False
    if not comparisons:
        return f"{golden.name}: EMPTY CHECK", False
    return summary(golden, comparisons)


def summary(golden: Golden, comparisons: list[Comparison]) -> tuple[str, bool]:
    """Return the line to print for a file's comparisons, and whether all match and none is missing."""
    worst = max(comparisons, key=lambda one: one.error / one.allowed)
    wrong = [one for one in comparisons if not one.error <= one.allowed]
    line = f"{golden.name}: {len(comparisons)} comparisons, largest relative error {worst.error:.1e} ({worst.what})"
    if wrong:
        line += f"  WRONG in {len(wrong)}: " + ", ".join(one.what for one in wrong[:5])
    missing = golden.not_compared(comparisons)
    if missing:
        line += f"  {len(missing)} expected tensors NOT COMPARED: " + ", ".join(missing[:5])
    return line, not wrong and not missing


def main(arguments: list[str]) -> int:
    """Check every file of the given folders; the project's own copy when none is named."""
    folders = [Path(argument) for argument in arguments] or [Path(__file__).parent / "data"]
    in_order, seen = True, 0
    for folder in folders:
        for golden in read_folder(folder):
            line, good = run_file(golden)
            print(line, flush=True)
            in_order, seen = in_order and good, seen + 1
    if not seen:
        print(f"No golden vectors in {', '.join(map(str, folders))}.", file=sys.stderr)
        return 2
    return 0 if in_order else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
