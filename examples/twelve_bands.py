"""Images of 12 bands with values from 0 to 3000, as of Sentinel-2, saved as .npy [H, W, 12] of uint16.

The first convolution of a model from timm or segmentation_models_pytorch takes any number of bands.
"""

import numpy as np

import dovetail
from dovetail.networks import build_network


def statistics(paths: list[str], high: float) -> tuple[list[float], list[float]]:
    """Return the mean and the deviation of each band of values in [0, 1], over the images."""
    pixels = np.concatenate([np.load(path).reshape(-1, 12).clip(0, high) / high for path in paths])
    return pixels.mean(axis=0).tolist(), pixels.std(axis=0).tolist()


def pretrain(paths: list[str]) -> dovetail.Run:
    """Pre-train a Unet with a ResNet-50 encoder on the images."""
    mean, std = statistics(paths[:200], high=3000.0)
    options = {"in_channels": 12, "value_range": [0, 3000], "mean": mean, "std": std}
    return dovetail.pretrain(data=paths, model="smp/unet/resnet50", method="decon-sl", out="runs/bands", **options)


if __name__ == "__main__":
    from pathlib import Path

    run = pretrain(sorted(map(str, Path("bands").glob("*.npy"))))
    print(dovetail.load_into(build_network("smp/unet/resnet50", in_channels=12).model, run.folder))
