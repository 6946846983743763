"""What a network answers to a few images, and maps of features as colours.

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

MOST_CELLS = 4096  # components are found on at most this many, evenly spaced
PERCENTILES = (2.0, 98.0)
# CIE L*a*b* around these; lightness carries the first component, so that it is seen without colour vision too.
LIGHTNESS, CHROMA = (22.0, 92.0), 55.0


class ColouredMaps(NamedTuple):
    """Maps [h, w, 3] uint8 of every image, and the share of variance that the three colours show."""

    pictures: list[Rgb]
    share: float


def maps_of(network: Network, view: View, taps: Collection[str]) -> dict[str, Tensor]:
    """Return the named taps for a view, as float32 on the processor; the network is left as it was."""
    with at_rest(network):
        return {name: value.float().cpu() for name, value in network(view, taps).items()}


def shown_taps(taps: dict[str, Tap], recipe: Recipe) -> list[str]:
    """Return the maps worth looking at: the encoder's and the decoder's, those that the recipe trains first."""
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
    """Return [M, count] the projections of features [M, C] on their first components, and their share of variance.

    The sign of each is that of its component's largest weight, so that the same features give the same picture.
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
    """Return maps [N, C, h, w] in the colours of the first three principal components of all their cells.

    The first is lightness, the second blue to yellow, the third green to red, in the perceptually uniform L*a*b*.
    """
    if maps.dim() != 4:
        raise ModelError(f"Principal components are drawn of maps; found a tap of shape {tuple(maps.shape)}.")
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
    """Return CIE L*a*b* [..., 3] (D65) as sRGB, clipped to what a screen can show (CIE 15, IEC 61966-2-1)."""
    lightness, a, b = np.moveaxis(np.asarray(lab, dtype=np.float64), -1, 0)
    y = (lightness + 16) / 116
    cubed = np.stack([y + a / 500, y, y - b / 200], axis=-1)
    xyz = np.where(cubed > 6 / 29, cubed**3, 3 * (6 / 29) ** 2 * (cubed - 4 / 29)) * (0.95047, 1.0, 1.08883)
    to_linear = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
    linear = np.clip(xyz @ to_linear.T, 0, 1)
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    rgb: Rgb = np.round(coded * 255).astype(np.uint8)
    return rgb
