"""The house's rules on imports, and that looking around is quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "dovetail"

# Imports run one way: a module may import those of its own rank and below.
RANKS = ["errors", "distributed", "schedules", "views", "heads", "objectives", "recipe", "networks", "weights"]
RANKS += ["data", "train", "transfer", "recipes"]


def imports_of(path: Path) -> set[str]:
    """Return the dovetail modules that a file imports, with TYPE_CHECKING blocks and functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dovetail."):
            found.add(node.module.split(".")[1])
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("dovetail.")}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    if room not in RANKS:
        return
    above = set(RANKS[RANKS.index(room) + 1 :])
    assert imports_of(path) & above == set()


@pytest.mark.parametrize(("room", "banned"), [("objectives", "networks"), ("train", "recipes")])
def test_the_two_bans(room: str, banned: str) -> None:
    files = list((SOURCE / room).rglob("*.py"))
    assert files
    assert [path.name for path in files if banned in imports_of(path)] == []


def test_import_and_help_load_nothing_heavy() -> None:
    code = (
        "import sys, dovetail, dovetail.cli; dovetail.cli.run(['--help']); "
        "print([name for name in ('torch', 'timm', 'lightning', 'jsonargparse', 'numpy') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
