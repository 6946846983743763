"""`python -m benchmarks.bit_equality --against COMMIT`: check whether the working tree is bit-equal to a commit.

Checks COMMIT out into a temporary git worktree and runs the same tiny jobs with the same seeds on it and on the working
tree, each in a separate process with PYTHONPATH set to that tree's `src`. It compares SHA-256 hashes of names, dtypes,
shapes and bytes of the results: weights, states of learners and optimisers, metrics, scores, predictions. Prints a
table and exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bit_equality.inputs import write_inputs
from benchmarks.bit_equality.jobs import JOBS, chosen
from benchmarks.bit_equality.manifest import difference, digest

ROOT = Path(__file__).parents[2]
SHOWN = 12  # hexadecimal digits of a hash


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check a commit out into a temporary git worktree, which is removed afterwards.

    Raises:
        SystemExit: For a commit that git does not know.
    """
    folder = Path(tempfile.mkdtemp(prefix="dovetail-equal-tree-"))
    tree = folder / "tree"
    git = ["git", "-C", str(ROOT), "worktree"]
    try:
        done = subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"git cannot check out {commit!r}: {done.stderr.strip()}")
        yield tree
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def run_tree(tree: Path, label: str, names: Sequence[str], folder: Path, *, preset: str) -> dict[str, dict[str, Any]]:
    """Run jobs on a tree and return its lines by job: {seconds, manifest, error}.

    Args:
        tree: Root of the checkout whose `src` is imported.
        label: Of this tree; its outputs are in `folder`/`label`, those of the tree that ran first in `folder`/old.
        names: Of the jobs, in order.
        folder: With the inputs.
        preset: For every pre-training.
    """
    task = {"tree": tree, "inputs": folder / "inputs", "own": folder / label, "first": folder / "old"}
    file = folder / f"{label}.json"
    file.write_text(json.dumps({**{key: str(path) for key, path in task.items()}, "preset": preset, "jobs": names}))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tree / "src"), str(ROOT)]),
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "benchmarks.bit_equality.driver", str(file)]
    found: dict[str, dict[str, Any]] = {}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                one = json.loads(line)
                found[one["job"]] = one
                how = one["error"] or f"{one['seconds']:.1f} s"
                print(f"{label} {len(found)}/{len(names)} {one['job']}: {how}", file=sys.stderr, flush=True)
        except BaseException:
            process.kill()  # a job answers Ctrl-C by itself, and the next one would start
            raise
    for name in names:  # a process that died leaves some without a line
        error = f"the process ended with {process.returncode}; see {folder / label}.log"
        found.setdefault(name, {"manifest": None, "error": error})
    (folder / f"{label}.manifests.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def row(job: str, old: dict[str, Any], new: dict[str, Any]) -> tuple[str, str, str, str]:
    """Return a line of the table: job, old hash, new hash, and "equal" or what differs."""
    hashes = [digest(one["manifest"])[:SHOWN] if one["manifest"] else "-" for one in (old, new)]
    failures = [f"{label} fails: {one['error']}" for label, one in (("old", old), ("new", new)) if not one["manifest"]]
    verdict = "; ".join(failures) or difference(old["manifest"], new["manifest"]) or "equal"
    return job, hashes[0], hashes[1], verdict


def compare(
    old: Path, new: Path, names: Sequence[str], folder: Path, *, preset: str
) -> list[tuple[str, str, str, str]]:
    """Run jobs on two trees and return the table."""
    write_inputs(folder / "inputs")
    before = run_tree(old, "old", names, folder, preset=preset)
    after = run_tree(new, "new", names, folder, preset=preset)
    return [row(name, before[name], after[name]) for name in names]


def table(rows: Sequence[tuple[str, str, str, str]]) -> str:
    """Return rows as a table in Markdown."""
    lines = ["| job | old | new | |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {job} | {old} | {new} | {verdict} |" for job, old, new, verdict in rows)])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options, with the names of the jobs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bit_equality", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("--against", default="HEAD~1", help="commit to compare the working tree with")
    parser.add_argument("--jobs", default="*", metavar="PATTERN", help="run matching jobs, and the jobs that they need")
    parser.add_argument("--preset", choices=("paper", "small"), default="paper", help="preset of every pre-training")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the runs even if all are equal")
    options = parser.parse_args(arguments)
    options.names = chosen(options.jobs)
    if not options.names:
        parser.error(f"no job matches {options.jobs!r}; choose from {', '.join(JOBS)}")
    return options


def main(arguments: Sequence[str]) -> int:
    """Compare the working tree with a commit; return 1 where anything differs."""
    options = parse(arguments)
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="dovetail-equal-"))
    keep = options.keep
    try:
        with checkout(options.against) as old:
            rows = compare(old, ROOT, options.names, folder, preset=options.preset)
        equal = sum(verdict == "equal" for *_, verdict in rows)
        keep = keep or equal < len(rows)
        print(table(rows))
        print(f"\n{equal} of {len(rows)} jobs are equal to {options.against}, in {time.monotonic() - began:.0f} s.")
        if keep:
            print(f"The runs, their logs and all hashes are in {folder}.", file=sys.stderr)
        return int(equal < len(rows))
    finally:
        if not keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
