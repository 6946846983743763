"""The house's rules on imports, and that looking around is quick."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Collection, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "dovetail"

# Imports run one way: a module may import those of its own rank and of ranks before it. A file may have its own rank.
RANKS = ["errors", "sizes", "durations", "public", "importing", "output", "names", "options", "provenance"]
RANKS += ["distributed", "schedules", "files", "views", "heads", "objectives", "recipe", "networks", "weights"]
RANKS += ["recipes", "parsing", "data", "train", "downstream", "run", "report", "downstream.finetune", "run.online"]
RANKS += ["run.pretrain", "tryout", "cli", "__init__"]


def module_of(path: Path, source: Path) -> str:
    """Return a file's module below dovetail; a package's own file has the package's name."""
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """Return a file's syntax tree, which is parsed once for all rules."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path, known: Collection[str]) -> set[str]:
    """Return the modules that a file imports, those within functions and below TYPE_CHECKING included."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dovetail":
            module = ".".join((node.module or "").split(".")[1:])
            names = {f"{module}.{one.name}".lstrip(".") for one in node.names}
            found |= names.intersection(known) or {module}.intersection(known)
        if isinstance(node, ast.Import):
            found |= {one.name.removeprefix("dovetail.") for one in node.names if one.name.startswith("dovetail.")}
    return found


@functools.cache
def graph_of(source: Path) -> dict[str, set[str]]:
    """Return what each module of a tree imports."""
    files = {module_of(path, source): path for path in source.rglob("*.py")}
    return {module: imports_of(path, files) - {module} for module, path in files.items()}


def rank_of(module: str) -> int | None:
    """Return a module's place in the ranks: its own, or that of the package it is in; None where neither has one."""
    parts = module.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((RANKS.index(name) for name in names if name in RANKS), None)


def faults_of(graph: Mapping[str, Collection[str]]) -> list[str]:
    """Return what breaks the rules: modules without a rank, imports of higher ranks, circles."""
    faults = [f"{module} has no rank" for module in sorted(graph) if rank_of(module) is None]
    for module, imports in sorted(graph.items()):
        own = rank_of(module)
        higher = (one for one in sorted(imports) if own is not None and (rank_of(one) or 0) > own)
        faults += [f"{module} imports {one}, which is above it" for one in higher]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        faults.append(f"circle: {' -> '.join(error.args[1])}")
    return faults


def test_every_file_has_a_rank_and_imports_run_one_way_without_circles() -> None:
    graph = graph_of(SOURCE)
    assert len(graph) > 200
    assert faults_of(graph) == []


def calls_at_import(path: Path) -> list[str]:
    """Return the statements of a file that only call something, which runs when it is imported."""
    body = tree_of(path).body
    return [ast.unparse(one) for one in body if isinstance(one, ast.Expr) and isinstance(one.value, ast.Call)]


def test_importing_a_file_registers_nothing() -> None:
    assert {module_of(path, SOURCE): calls for path in SOURCE.rglob("*.py") if (calls := calls_at_import(path))} == {}


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"errors.py": "", "attic.py": "from dovetail.errors import DovetailError"}, "attic has no rank"),
        (
            {"views/__init__.py": "", "views/view.py": "def later():\n    from dovetail.train import step"}
            | {"train/__init__.py": "", "train/step.py": ""},
            "views.view imports train.step, which is above it",
        ),
        (
            {
                "data/__init__.py": "",
                "data/a.py": "from dovetail.data.b import x",
                "data/b.py": "from dovetail.data import a",
            },
            "circle: data.b -> data.a -> data.b",
        ),
    ],
)
def test_what_breaks_the_rules_is_found(files: dict[str, str], fault: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = faults_of(graph_of(tmp_path))
    assert len(found) == 1
    assert found[0] == fault or (fault.startswith("circle") and found[0].startswith("circle"))


@pytest.mark.parametrize(("room", "banned"), [("objectives", "networks"), ("train", "recipes")])
def test_the_two_bans(room: str, banned: str) -> None:
    files = list((SOURCE / room).rglob("*.py"))
    assert files
    known = graph_of(SOURCE)
    assert [path.name for path in files if any(one.split(".")[0] == banned for one in imports_of(path, known))] == []


# Runs in a process of its own, and prints which modules that compute were imported.
HELP_AND_REFUSALS = """
import contextlib, io, os, sys
from dovetail.cli import VERBS, run
for name in VERBS:
    for more in (["--help"], ["--no-such-option", "1"], ["--seed", "much"]):
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
            with contextlib.redirect_stderr(io.StringIO()) as err:
                code = run([*name.split(), *more])
        assert more == ["--help"] and "usage: " in out.getvalue() or err.getvalue().startswith("dovetail: "), name
for words in ("pretrain --method dino+decon-sl-byol --help", "pretrain --method slotkon", "pretrain --lr -1",
              "pretrain --recipe.momentum x", "pretrain --recipe.queries 3", "show slotkon", "methods"):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        with contextlib.redirect_stderr(io.StringIO()):
            run(words.split())
os.makedirs("runs/wheat")
for words in ("pretrain --data fotos --out o --model m", "pretrain --data . --knn-data fotos --out o --model m",
              "try --data . --labels fotos --out o", "finetune segment --run runs/weat --data .",
              "finetune detect --run . --data fotos", "evaluate dense --run run/wheat --data .",
              "predict --run runs/weat --data . --out o", "export --run runs/weat --format timm --to o",
              "embed --run . --data fotos --out o", "visualize pca --run . --images fotos --out o"):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert run(words.split()) == 2
    wanted = "did you mean 'runs/wheat'?" if "/w" in words else "There is no file or folder 'fotos'"
    assert wanted in err.getvalue(), err.getvalue()
os.makedirs("empty"); os.makedirs("full/runs"); open("full/a.txt", "w").close()
open("init.yaml", "w").write("init: imagenett")
a_run = "pretrain --data full --out o --model"
for words, wanted in ((f"{a_run} smp/unet/resnett18", "did you mean 'smp/unet/resnet18'?"),
                      (f"{a_run} timm/resnett50+fpn", "did you mean 'timm/resnet50+fpn'?"),
                      (f"{a_run} resnet50", "did you mean 'timm/resnet50'?"),
                      ("show decon-sl --model smp/unet/resnett18", "did you mean 'smp/unet/resnet18'?"),
                      (f"{a_run} timm/resnet", "did you mean 'timm/resnet18'?"),
                      ("finetune segment --data full --out o --model smp/unett/resnet18", "'smp/unet/resnet18'?"),
                      ("pretrain --model smp/unet/resnet18 --out o", "--data is missing"),
                      ("pretrain --data full --out o", "--model is missing"),
                      ("pretrain --data full --model smp/unet/resnet18", "--out is missing"),
                      ("pretrain --data empty --model smp/unet/resnet18 --out o", "'empty' contains no files"),
                      ("pretrain --data empty --model smp/unet/resnet18 --out full", "full is not empty"),
                      (f"{a_run} smp/unet/resnet18 --config init.yaml", "did you mean 'imagenet'?"),
                      ("pretrain --out empty --resume", "empty contains no run to resume"),
                      ("try --data full --labels full", "out is missing"),
                      ("finetune segment --run full", "--data is missing"),
                      ("evaluate dense --data full", "--out is missing"),
                      ("evaluate dense --data full --out o", "--run is missing"),
                      ("finetune segment --run full --data full --start imagnet", "did you mean 'imagenet'?"),
                      (f"{a_run} smp/unet/resnet18 --out full/a.txt/o", "full/a.txt is a file"),
                      ("try --data full --labels full --out full/a.txt", "full/a.txt is a file"),
                      ("finetune detect --run full --data full --out full/a.txt", "full/a.txt is a file"),
                      ("evaluate knn --run full --data full --out full/a.txt/o", "full/a.txt is a file"),
                      ("predict --run full --data full --out full/a.txt", "full/a.txt is a file"),
                      ("predict --run full --data full", "--out is missing")):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert run(words.split()) == 2
    assert wanted in err.getvalue(), err.getvalue()
for words in (["models", "resnet18"], ["models"], ["models", "smp/fpn/*lite0*"], ["models", "--decoder"]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        assert run(words) == 0, err.getvalue()
    assert "smp/fpn/" in out.getvalue() or "timm/NAME" in out.getvalue()
    assert not err.getvalue()
heavy = [name for name in ("torch", "timm", "lightning", "numpy", "PIL") if name in sys.modules]
with contextlib.redirect_stderr(io.StringIO()) as err:
    assert run(f"{a_run} smp/unet/resnet18".split()) == 2
assert "Found 1 .txt file and 1 folder but no images in 'full'" in err.getvalue(), err.getvalue()
for words, wanted in (("--data full --out o.csv", "unsupported suffix; expected .npy or .parquet"),
                      ("--data full --out empty", "unsupported suffix"),
                      ("--out o.npy", "--data is missing"),
                      ("--data full --out o.npy", "Found 1 .txt file and 1 folder but no images in 'full'"),
                      ("--data empty --out o.npy", "Found nothing but no images in 'empty'")):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert run(f"embed --run full {words}".split()) == 2
    assert wanted in err.getvalue(), err.getvalue()
heavy += [name for name in ("torch", "timm", "lightning", "numpy") if name in sys.modules]
class Reached(BaseException):
    pass
class Watching:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise Reached
sys.meta_path.insert(0, Watching())  # PyTorch itself takes seconds to load
with contextlib.redirect_stderr(io.StringIO()) as err:
    try:
        run("export --run full --format timm --to o".split())
    except Reached:
        heavy.append("reached")
assert err.getvalue().startswith("Loading PyTorch"), err.getvalue()
print(heavy)
"""


def test_help_and_refusals_of_every_command_import_nothing_that_computes(tmp_path: Path) -> None:
    """By what is imported: so each comes within a second, which no test should ask a clock."""
    done = subprocess.run(
        [sys.executable, "-c", HELP_AND_REFUSALS], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['reached']"  # once it was said that this takes a while


def test_import_and_help_load_nothing_heavy() -> None:
    code = (
        "import sys, dovetail, dovetail.cli; dovetail.cli.run(['--help']); "
        "print([name for name in ('torch', 'timm', 'lightning', 'jsonargparse', 'numpy') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
