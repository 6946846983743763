"""What a run ran on, in words."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("dovetail-ssl", "torch", "torchvision", "lightning", "timm", "segmentation-models-pytorch", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run depends on; those not installed are left out."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine(accelerator: str, precision: str) -> str:
    """Return operating system, processor, accelerator and number format."""
    words = f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} processor cores"
    if accelerator == "cuda" and torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        words += ", " + ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        words += f" (CUDA {torch.version.cuda})"
    return f"{words}; ran on {accelerator} in {precision}"
