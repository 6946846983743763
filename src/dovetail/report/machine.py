"""Describes the machine and the package versions of a run."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("dovetail-ssl", "torch", "torchvision", "lightning", "timm", "segmentation-models-pytorch", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the main packages. Packages that are not installed are skipped."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine(accelerator: str, precision: str) -> str:
    """Return a description of operating system, CPU, accelerator and precision."""
    words = f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} CPU cores"
    if accelerator == "cuda" and torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        words += ", " + ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        words += f" (CUDA {torch.version.cuda})"
    return f"{words}; ran on {accelerator} in {precision}"
