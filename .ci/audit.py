"""Known vulnerabilities in what constraints.txt names: one line each, or a sentence on why nobody could be asked.

Ends with 1 only for a vulnerability: no network, an index that keeps no list of them, or one that does not answer in
time are no faults of this project, and must not stop work on it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
ANSWER_SECONDS = 15  # for one package
ALL_SECONDS = 300
AUDIT = [sys.executable, "-m", "pip_audit"]


def audited(packages: list[str], *, seconds: float) -> list[dict[str, Any]] | str:
    """Return what pip-audit knows of each pinned package, or why it could not be asked."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "packages.txt"
        asked.write_text("\n".join(packages) + "\n", encoding="utf-8")
        options = ["--requirement", str(asked), "--no-deps", "--disable-pip", "--format", "json"]
        options += ["--progress-spinner", "off", "--timeout", str(ANSWER_SECONDS)]
        try:
            done = subprocess.run([*AUDIT, *options], capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"it did not answer within {seconds:g} seconds"
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = done.stderr.strip().splitlines()
        return said[-1] if said else f"pip-audit ended with {done.returncode}"
    return found


def main() -> int:
    """Ask about one package; if there is an answer, about all."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if line.strip() and not line.startswith("#")]
    found = audited(packages[:1], seconds=4 * ANSWER_SECONDS)
    if not isinstance(found, str) and all("skip_reason" in one for one in found):
        found = "the package index reached from here tells of none"
    if not isinstance(found, str):
        found = audited(packages, seconds=ALL_SECONDS)
    if isinstance(found, str):
        print(f"audit: known vulnerabilities were not looked up, as {found}")
        return 0
    unknown = [one["name"] for one in found if "skip_reason" in one]
    if unknown:
        print(f"audit: nothing is known about {', '.join(unknown)}")
    bad = [one for one in found if one.get("vulns")]
    for one in bad:
        for vulnerability in one["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
            print(f"audit: {one['name']} {one['version']} has {vulnerability['id']}, which {fixed} mends")
    print(f"audit: {len(found) - len(unknown)} packages looked up, {len(bad)} with known vulnerabilities")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
