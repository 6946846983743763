"""Feature maps of a few images, and their visualisation as colours.

Shapes: N images, C channels, h x w cells, M = N h w cells in all.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dovetail.errors import ModelError
from dovetail.networks.network import Network, decoder_taps
from dovetail.networks.rest import at_rest
from dovetail.recipe import Recipe, Tap
from dovetail.report.pixels import Rgb
from dovetail.views.view import View

MOST_CELLS = 4096  # components are computed on at most this many cells, evenly spaced
PERCENTILES = (2.0, 98.0)
# Ranges in CIE L*a*b*. The first component is the lightness, which is visible without colour vision, too.
LIGHTNESS, CHROMA = (22.0, 92.0), 55.0


class ColouredMaps(NamedTuple):
    """Coloured maps [h, w, 3] uint8 of all images, and the fraction of the variance that they show."""

    pictures: list[Rgb]
    share: float


def maps_of(network: Network, view: View, taps: Collection[str]) -> dict[str, Tensor]:
    """Return the taps of a network for a view, as float32 on the CPU. The state of the network is restored."""
    with at_rest(network):
        return {name: value.float().cpu() for name, value in network(view, taps).items()}


def shown_taps(taps: dict[str, Tap], recipe: Recipe) -> list[str]:
    """Return the taps to show: one of the encoder and one of the decoder, preferably taps that the recipe trains."""
    trained = [term.tap for term in recipe.terms]
    chosen = []
    for part in ("encoder", "decoder"):
        maps = [name for name, tap in taps.items() if tap.kind == "map" and tap.part == part]
        in_use = [name for name in maps if name in trained]
        if part == "decoder":
            in_use, maps = [name for name in decoder_taps(taps) if name in trained], decoder_taps(taps)
        else:
            maps = sorted(maps, key=lambda name: -taps[name].stride)
        chosen += (in_use or maps)[:1]
    return chosen


def principal_components(features: Tensor, count: int = 3) -> tuple[Tensor, float]:
    """Project features [M, C] on their first principal components.

    The sign of a component is that of its largest weight, so the same features always give the same colours.

    Returns:
        Projections [M, count], and the fraction of the variance that they explain.
    """
    centred = features - features.mean(dim=0)
    every = max(1, len(centred) // MOST_CELLS)
    _, singular, rows = torch.linalg.svd(centred[::every], full_matrices=False)  # rows [min(M, C), C]
    count_found = min(count, len(rows))
    rows = rows[:count_found]
    strongest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    projected = centred @ (rows * strongest.sign()).T
    projected = torch.nn.functional.pad(projected, (0, count - count_found))
    variance = singular.square()
    total = float(variance.sum())
    return projected, float(variance[:count_found].sum()) / total if total > 0 else 1.0


def coloured(maps: Tensor) -> ColouredMaps:
    """Colour maps [N, C, h, w] by the first three principal components of all their cells.

    In the perceptually uniform L*a*b* space, the first component is the lightness, the second one blue to yellow, and
    the third one green to red.
    """
    if maps.dim() != 4:
        raise ModelError(
            f"Principal components need a feature map, got a tap of shape {tuple(maps.shape)}; use another model."
        )
    count, channels, height, width = maps.shape
    projected, share = principal_components(maps.permute(0, 2, 3, 1).reshape(-1, channels))
    low, high = np.percentile(projected.numpy(), PERCENTILES, axis=0)
    unit = np.clip((projected.numpy() - low) / np.maximum(high - low, 1e-12), 0, 1)
    lab = np.stack(
        [
            LIGHTNESS[0] + (LIGHTNESS[1] - LIGHTNESS[0]) * unit[:, 0],
            CHROMA * (2 * unit[:, 2] - 1),
            CHROMA * (2 * unit[:, 1] - 1),
        ],
        axis=1,
    )
    pictures = lab_to_rgb(lab).reshape(count, height, width, 3)
    return ColouredMaps(list(pictures), share)


def lab_to_rgb(lab: NDArray[np.floating]) -> Rgb:
    """Convert CIE L*a*b* [..., 3] (D65) to sRGB, clipped to its gamut (CIE 15, IEC 61966-2-1)."""
    lightness, a, b = np.moveaxis(np.asarray(lab, dtype=np.float64), -1, 0)
    y = (lightness + 16) / 116
    cubed = np.stack([y + a / 500, y, y - b / 200], axis=-1)
    xyz = np.where(cubed > 6 / 29, cubed**3, 3 * (6 / 29) ** 2 * (cubed - 4 / 29)) * (0.95047, 1.0, 1.08883)
    to_linear = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
    linear = np.clip(xyz @ to_linear.T, 0, 1)
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    rgb: Rgb = np.round(coded * 255).astype(np.uint8)
    return rgb
