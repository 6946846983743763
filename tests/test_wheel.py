"""The wheel, built from the sdist, with what it declares alone: no extras, repository, git, compiler or home folder."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

ROOT = Path(__file__).parents[1]
BACKEND = "import hatchling.build, sys; print(getattr(hatchling.build, sys.argv[1])(sys.argv[2]))"
TINY = (
    *("--model", "timm/test_resnet+fpn", "--image-size", "64", "--batch-size", "4", "--max-steps", "2"),
    *("--workers", "0", "--precision", "32-true", "--accelerator", "cpu"),
    *("--recipe.hidden", "16", "--recipe.dim", "8", "--recipe.prototypes", "6", "--recipe.decoder-grid", "8"),
)
EXTRAS = "sklearn, pyarrow, tifffile, imagecodecs, datasets, skimage, kornia, lightly, hypothesis, pytest"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="links to what is installed")]


def declared(lines: list[str], extra: str, found: dict[str, importlib.metadata.Distribution]) -> None:
    """Collect what requirements name where `extra`, "" for none, is asked for, and what that requires in turn."""
    for requirement in map(Requirement, lines):
        key = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        first = key not in found
        found[key] = importlib.metadata.distribution(requirement.name)
        for one in ["", *requirement.extras] if first else requirement.extras:
            declared(found[key].requires or [], one, found)


def link_declared(wheel: Path, packages: Path) -> None:
    """Link the distributions that a wheel declares into a folder of packages."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        lines = message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    found: dict[str, importlib.metadata.Distribution] = {}
    declared(lines, "", found)
    for one in found.values():
        for part in {file.parts[0] for file in one.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            place = packages / part
            if not place.exists():
                place.symlink_to(Path(str(one.locate_file(part))).resolve())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that was built from the sdist. The build backend comes from the package index."""
    folder = tmp_path_factory.mktemp("build")
    tools, out = folder / "tools", folder / "dist"
    out.mkdir()
    subprocess.run([sys.executable, "-m", "venv", tools], check=True)
    subprocess.run([tools / "bin/python", "-m", "pip", "install", "--quiet", "hatchling"], check=True)
    build = [tools / "bin/python", "-c", BACKEND]
    subprocess.run([*build, "build_sdist", out], cwd=ROOT, check=True)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    subprocess.run([*build, "build_wheel", out], cwd=source, check=True)
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def alone(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and what it declares."""
    folder = tmp_path_factory.mktemp("alone") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    link_declared(wheel, packages)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    return python


def told(python: Path, folder: Path, *command: str) -> str:
    """Run a command of the environment in another folder, with nothing on PATH and no home; return its output."""
    environment = {"PATH": str(python.parent), "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python.parent / command[0], *command[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_main_job_runs_alone(alone: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for index in range(4):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    assert "commands:" in told(alone, tmp_path, "dovetail", "--help")
    assert "--recipe.prototypes" in told(alone, tmp_path, "dovetail", "pretrain", "--help")
    told(alone, tmp_path, "dovetail", "pretrain", "--data", "photos", "--out", "run", *TINY)
    assert (tmp_path / "run" / "exported" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
    shown = told(alone, tmp_path, "python", "-c", "import dovetail; print(dovetail.__file__, dovetail.load('run'))")
    assert str(alone.parents[1]) in shown


def test_no_extra_is_there(alone: Path, tmp_path: Path) -> None:
    code = f"import importlib.util as u; print([n for n in '{EXTRAS}'.split(', ') if u.find_spec(n)])"
    assert told(alone, tmp_path, "python", "-c", code).strip() == "[]"
