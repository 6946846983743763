"""The wheel, built from the sdist, with what it declares alone: no extras, repository, git, compiler or home folder."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
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
    *("--model", "timm/test_resnet+fpn(channels=16)", "--image-size", "64", "--batch-size", "4", "--max-steps", "2"),
    *("--workers", "0", "--precision", "32-true", "--accelerator", "cpu"),
    *("--recipe.hidden", "16", "--recipe.dim", "8", "--recipe.prototypes", "6", "--recipe.decoder-grid", "8"),
)
OTHER_USER = 12345
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


def told(python: Path, folder: Path, *command: str, home: Path | None = None, by: Sequence[str] = ()) -> str:
    """Run a command of the environment in another folder, with nothing on PATH; return its output.

    `home` is the home folder, by default none, and `by` the command that runs the command.
    """
    environment = {"PATH": str(python.parent), "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*by, python.parent / command[0], *command[1:]],
        cwd=folder,
        env=environment | ({} if home is None else {"HOME": str(home)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_images(folder: Path) -> None:
    """Write four images of noise."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")


def test_the_main_job_runs_alone(alone: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "photos")
    assert "commands:" in told(alone, tmp_path, "dovetail", "--help")
    shown = told(alone, tmp_path, "dovetail", "pretrain", "--method", "decon-sl", "--help")
    assert "--recipe.prototypes" in shown
    told(alone, tmp_path, "dovetail", "pretrain", "--data", "photos", "--out", "run", *TINY)
    assert (tmp_path / "run" / "exported" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
    shown = told(alone, tmp_path, "python", "-c", "import dovetail; print(dovetail.__file__, dovetail.load('run'))")
    assert str(alone.parents[1]) in shown


def by_another_user() -> list[str]:
    """Return what runs a command as a user without a name, as in a container, who may write to no folder of others.

    They may read all, since the interpreter may be in root's home folder.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv to change the user")
    rights = [f"--{kind}-caps=+dac_read_search" for kind in ("inh", "ambient")]
    return [setpriv, f"--reuid={OTHER_USER}", f"--regid={OTHER_USER}", "--clear-groups", *rights]


def test_another_user_whose_home_cannot_be_written_runs_the_main_job(alone: Path, tmp_path: Path) -> None:
    by = by_another_user()
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir(mode=0o555)
    work.mkdir()
    write_images(tmp_path / "photos")
    if by:
        os.chown(work, OTHER_USER, OTHER_USER)
    told(alone, work, "dovetail", "pretrain", "--data", "../photos", "--out", "run", *TINY, home=home, by=by)
    exported = work / "run" / "exported" / "model.safetensors"
    assert exported.stat().st_uid == (OTHER_USER if by else os.geteuid())
    assert (work / "run" / "report.html").is_file()
    assert list(home.iterdir()) == []


def test_no_extra_is_there(alone: Path, tmp_path: Path) -> None:
    code = f"import importlib.util as u; print([n for n in '{EXTRAS}'.split(', ') if u.find_spec(n)])"
    assert told(alone, tmp_path, "python", "-c", code).strip() == "[]"
