"""Packages whose images the sets are made of, fetched when a set is first built, by the machine's own clients.

Debian's packages come by `apt-get download`, Python's by `pip download`, from wherever this machine takes packages.
What is wanted of a package is kept in the cache, made no larger than needed; the archive itself is deleted. Versions
and SHA-256 of the archives behind the published tables are written here; another version builds too, but the set says
so, and its results do not mix with those of the known one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from dovetail.errors import DovetailError

FETCHED = "fetched.json"
Keep = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Package:
    """An archive of images.

    Attributes:
        name: In its registry.
        kind: Which client fetches it.
        version: Of the published tables; pip is asked for it, apt gives what the machine's release has.
        sha256: Of the archive with that version; of a wheel with compiled parts, that of CPython 3.11 on x86-64.
    """

    name: str
    kind: Literal["debian", "python"]
    version: str
    sha256: str


@dataclass(frozen=True)
class Fetched:
    """What the cache has of a package: the folder, the archive's name and SHA-256, and whether it is the known one."""

    folder: Path
    archive: str
    sha256: str
    known: bool


def default_cache() -> Path:
    """Return the folder for everything fetched and built: `dovetail/evidence` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dovetail" / "evidence"


def fetch(package: Package, cache: Path, keep: Keep, *, edition: str) -> Fetched:
    """Return what is kept of a package; fetch it where the cache lacks it.

    Args:
        package: What to fetch.
        cache: Folder of the cache.
        keep: Called with the folder of the unpacked archive and an empty folder, into which it puts what is wanted.
        edition: What tells one way to keep from another; part of the folder's name.

    Raises:
        DovetailError: Where the client is missing or fails.
    """
    folder = cache / "packages" / f"{package.name}-{edition}"
    if not (folder / FETCHED).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as scratch:
            kept = Path(scratch) / "kept"
            kept.mkdir()
            archive = download(package, Path(scratch) / "archive")
            digest = sha256_of(archive)
            unpacked = unpack(archive, Path(scratch) / "unpacked")
            facts = {"package": asdict(package), "archive": archive.name, "sha256": digest}
            archive.unlink()
            keep(unpacked, kept)
            (kept / FETCHED).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            kept.rename(folder)
    facts = json.loads((folder / FETCHED).read_text(encoding="utf-8"))
    return Fetched(folder, facts["archive"], facts["sha256"], facts["sha256"] == package.sha256)


def download(package: Package, folder: Path) -> Path:
    """Fetch a package's archive into a new folder and return its path."""
    folder.mkdir()
    if package.kind == "debian":
        command = ["apt-get", "download", package.name]
    else:
        requirement = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", requirement]
    print(f"Downloading {package.name}: {' '.join(command[-3:])}", flush=True)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise DovetailError(
            f"The images of {package.name} come from a Debian package, but this machine has no {command[0]}; build "
            "the set on Debian or Ubuntu and copy the cache."
        ) from None
    archives = [path for path in folder.iterdir() if path.suffix in (".deb", ".whl")]
    if done.returncode or len(archives) != 1:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise DovetailError(
            f"{package.name} could not be downloaded ({said[-1]}); check that `{' '.join(command)}` works."
        )
    return archives[0]


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a .deb or .whl into a new folder and return it."""
    folder.mkdir()
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    else:
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
    return folder


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def keep_copyright(package: Package, unpacked: Path, kept: Path) -> None:
    """Copy a Debian package's own statement of authors and licences to `copyright`."""
    shutil.copy(unpacked / "usr" / "share" / "doc" / package.name / "copyright", kept / "copyright")
