"""The rendering environment: Blender and Infinigen in a virtual environment of their own, made where it is missing.

Neither becomes a dependency of the project: its programs run `spawn`, `floors` and `trace` with this environment's
Python and read the files that they leave.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dovetail.errors import DovetailError

READY = "ready.json"
PYTHON = (3, 11)  # the only one that bpy 4.2 and this Infinigen have wheels for
BLENDER, INFINIGEN = "bpy==4.2.0", "infinigen==1.15.5"
# Infinigen's own requirements ask for packages that have no wheels; these are what its assets need.
NEEDS = (
    *("numpy<2", "coacd", "gin_config>=0.5", "imageio<2.32", "matplotlib", "networkx", "opencv-python-headless<4.9"),
    *("pandas", "psutil", "scikit-image<0.25", "scikit-learn<1.4", "scipy<1.14", "shapely<=2.0.5", "tqdm"),
    *("trimesh<3.23", "OpenEXR", "submitit", "python-fcl", "rtree", "pillow"),
)
STEPS: tuple[tuple[str, ...], ...] = (
    ("--only-binary", ":all:", BLENDER, *NEEDS),
    ("geomdl",),
    ("--no-deps", INFINIGEN),
)


def environment(folder: Path) -> Path:
    """Return the Python of the rendering environment in `folder`; make it there where there is none.

    Raises:
        DovetailError: Where this Python is not 3.11, or the packages cannot be installed.
    """
    python = folder / "bin" / "python"
    if (folder / READY).is_file() and python.is_file():
        return python
    if sys.version_info[:2] != PYTHON:
        raise DovetailError(
            f"The tabletop scenes are rendered with {BLENDER}, which needs Python {PYTHON[0]}.{PYTHON[1]}, but this is "
            f"Python {sys.version_info[0]}.{sys.version_info[1]}; run the command with Python {PYTHON[0]}.{PYTHON[1]}."
        )
    print(
        f"Making a virtual environment with {BLENDER} and {INFINIGEN} in {folder}: downloads 525 MB of Python packages "
        "and takes 2.2 GB on disk",
        flush=True,
    )
    checked([sys.executable, "-m", "venv", "--clear", str(folder)])
    for step in STEPS:
        checked([str(python), "-m", "pip", "install", "--quiet", "--no-cache-dir", *step])
    (folder / READY).write_text(json.dumps({"steps": STEPS}, indent=1) + "\n", encoding="utf-8")
    return python


def checked(command: Sequence[str]) -> None:
    """Run a command of the installation."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise DovetailError(
            f"The rendering environment could not be created ({said[-1]}); check that `{' '.join(command)}` works."
        )


def run_script(python: Path, script: str, tasks: Sequence[dict[str, Any]]) -> None:
    """Run a script of this folder on several tasks at once, each in a process of its own.

    Raises:
        DovetailError: With the last line that a process printed, where one fails.
    """
    path = Path(__file__).with_name(f"{script}.py")
    with tempfile.TemporaryDirectory() as scratch:
        running = []
        for number, task in enumerate(tasks):
            said = Path(scratch) / f"{number}.txt"
            given = Path(scratch) / f"{number}.json"
            given.write_text(json.dumps(task), encoding="utf-8")
            with given.open() as source, said.open("w") as sink:
                running.append(
                    (subprocess.Popen([str(python), str(path)], stdin=source, stdout=sink, stderr=sink), said)
                )
        try:
            for process, said in running:
                if process.wait():
                    last = said.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
                    raise DovetailError(f"Blender failed in {script} ({last[-1]}); run the command again to continue.")
        finally:
            for process, _ in running:
                process.kill()
                process.wait()
