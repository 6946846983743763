"""Photometric augmentation: drawn per image on the CPU, applied to whole batches on the device.

Shapes: B images, C channels, H x W pixels in [0, 1].

The distributions are those of the papers' pipelines (torchvision's ColorJitter, RandomGrayscale and RandomSolarize,
Pillow's GaussianBlur), in their order: jitter, grey, blur, solarise. Unlike there, arithmetic is float32
without rounding to 8 bits between operations. For images without 3 channels, hue, saturation and grayscale are skipped,
and brightness, contrast, blur and solarisation treat all channels alike.

The operations are implemented here because they take a fraction of the time of kornia's and torchvision's on a CPU
(`benchmarks/results/speed_photometrics.md`): they avoid selections and copies, process an image while it is in the
cache, and blur in blocks. For a batch, kornia draws one order of the jitter, and torchvision's transforms draw
everything once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from dovetail.views.plan import Photometric

# Columns of the drawn parameters.
ORDER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, SIGMA, SOLARISE = range(8)
NUM_PARAMETERS = 8
NO_SOLARISE = 2.0  # a threshold that no pixel in [0, 1] reaches
IDENTITY = (0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, NO_SOLARISE)

_ORDERS = torch.tensor(list(permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE))))  # [24, 4] columns
_ANY_CHANNELS = (BRIGHTNESS, CONTRAST)  # jitter for images with any number of channels
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, Pillow's "L"
_BLUR_PASSES = 3  # number of Pillow's box blurs
_BLOCK_PX = 16
# Up to this many pixels, such as a query patch, calling an operation takes longer than the operation, so that a CPU
# processes all images together, too. The result is the same to the last bit, since so small a blur has no blocks.
_SMALL_PX = 32 * 32


def draw(rng: np.random.Generator, spec: Photometric) -> np.ndarray:
    """Return one image's parameters, [NUM_PARAMETERS] float32."""
    parameters = np.array(IDENTITY, dtype=np.float32)
    if rng.random() < spec.jitter_p:
        parameters[ORDER] = rng.integers(len(_ORDERS))
        for column, strength in (
            (BRIGHTNESS, spec.brightness),
            (CONTRAST, spec.contrast),
            (SATURATION, spec.saturation),
        ):
            parameters[column] = rng.uniform(max(0.0, 1 - strength), 1 + strength)
        parameters[HUE] = rng.uniform(-spec.hue, spec.hue)
    parameters[GREY] = rng.random() < spec.grey_p
    if rng.random() < spec.blur_p:
        parameters[SIGMA] = rng.uniform(*spec.blur_sigma_px)
    if rng.random() < spec.solarise_p:
        parameters[SOLARISE] = spec.solarise_threshold / 255
    return parameters


@torch.no_grad()
def apply(pixels: Tensor, parameters: Tensor) -> Tensor:
    """Return the augmented images [B, C, H, W] in [0, 1]; overwrites `pixels`.

    Args:
        pixels: float32, on any device.
        parameters: [B, NUM_PARAMETERS] on the CPU, so that images are grouped without waiting for the device.
    """
    one_by_one = pixels.device.type == "cpu" and pixels.shape[2] * pixels.shape[3] > _SMALL_PX
    change = _change_each if one_by_one else _change_together
    change(pixels, parameters)
    return pixels


def _change_each(pixels: Tensor, parameters: Tensor) -> None:
    """Process image by image, so that an image stays in the CPU cache for all of its operations."""
    colour = pixels.shape[1] == 3
    rows = parameters.tolist()
    orders = _ORDERS[parameters[:, ORDER].long()].tolist()
    for index, (row, order) in enumerate(zip(rows, orders, strict=True)):
        for column in (*order, GREY) if colour else (each for each in order if each in _ANY_CHANNELS):
            if row[column] != IDENTITY[column]:
                _OPERATIONS[column](pixels[index : index + 1], row[column])
    _blur_each(pixels, parameters[:, SIGMA], grey=[colour and row[GREY] > 0 for row in rows])
    for index, row in enumerate(rows):
        if row[SOLARISE] <= 1:
            solarise(pixels[index], row[SOLARISE])


def _change_together(pixels: Tensor, parameters: Tensor) -> None:
    """Process operation by operation, with few GPU kernels for many images."""
    colour = pixels.shape[1] == 3
    orders = _ORDERS[parameters[:, ORDER].long()]  # [B, 4]
    for position in range(orders.shape[1]):
        for column in (BRIGHTNESS, CONTRAST, SATURATION, HUE) if colour else _ANY_CHANNELS:
            changed = parameters[:, column] != IDENTITY[column]
            _change(pixels, (orders[:, position] == column) & changed, parameters[:, column], column)
    if colour:
        _change(pixels, parameters[:, GREY] > 0, parameters[:, GREY], GREY)
    _change(pixels, parameters[:, SIGMA] > 0, parameters[:, SIGMA], SIGMA)
    _change(pixels, parameters[:, SOLARISE] <= 1, parameters[:, SOLARISE], SOLARISE)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return [B, C, H, W] with each channel shifted by `mean` and divided by `std`, in place."""
    for channel, (shift, scale) in enumerate(zip(mean, std, strict=True)):
        plane = pixels[:, channel]
        torch.add(plane.new_full((), -shift / scale), plane, alpha=1 / scale, out=plane)  # one pass instead of two
    return pixels


def _change(pixels: Tensor, chosen: Tensor, values: Tensor, column: int) -> None:
    """Apply the operation of `column` to the `chosen` images [B] bool in place."""
    rows = chosen.nonzero()[:, 0]
    if len(rows) == 0:
        return
    on_device = rows.to(pixels.device, non_blocking=True)
    value = values[rows]
    if column != SIGMA:  # the host computes the extent of a blur
        value = value.to(pixels.device, non_blocking=True)
    pixels[on_device] = _OPERATIONS[column](pixels[on_device], value[:, None, None, None])


def luma(pixels: Tensor) -> Tensor:
    """Return [B, 1, H, W]: the grey value of RGB pixels, or the mean over other numbers of channels."""
    if pixels.shape[1] != 3:
        return pixels.mean(1, keepdim=True)
    red, green, blue = pixels.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])[:, None]


def brightness(pixels: Tensor, factor: Tensor | float) -> Tensor:
    """Return [B, C, H, W] blended with black, in place; `factor` [B, 1, 1, 1] or one for all, 1 is the identity."""
    return _clamp(pixels.mul_(factor), factor)


def contrast(pixels: Tensor, factor: Tensor | float) -> Tensor:
    """Return [B, C, H, W] blended with their mean grey value, in place; `factor` [B, 1, 1, 1] or one for all."""
    mean = luma(pixels.mean((2, 3), keepdim=True))
    return _clamp(torch.lerp(mean, pixels, factor, out=pixels), factor)


def saturation(pixels: Tensor, factor: Tensor | float) -> Tensor:
    """Return RGB [B, 3, H, W] blended with their grey version, in place; `factor` [B, 1, 1, 1] or one for all."""
    return _clamp(torch.lerp(luma(pixels), pixels, factor, out=pixels), factor)


def _clamp(pixels: Tensor, factor: Tensor | float) -> Tensor:
    """Clip blended pixels to [0, 1] in place; only a factor above 1 exceeds this range."""
    return pixels if isinstance(factor, float) and factor <= 1 else pixels.clamp_(0, 1)


def hue(pixels: Tensor, shift: Tensor | float) -> Tensor:
    """Shift the hue of RGB [B, 3, H, W] in place by `shift` [B, 1, 1, 1] or one value for all, in [-0.5, 0.5].

    The shift is a fraction of the circle. The hue is a position on a hexagon with red at 0, and its distance from red
    in both directions is (max - 2 min + green + blue - red) / (max - min). This avoids selecting the largest channel:
    on a CPU, comparisons and selections take four times as long as arithmetic.
    """
    red, green, blue = pixels[:, 0:1], pixels[:, 1:2], pixels[:, 2:3]
    larger, smaller = torch.maximum(green, blue), torch.minimum(green, blue)
    value, least = torch.maximum(red, larger), torch.minimum(red, smaller)
    chroma = value - least
    place = larger.add_(smaller).sub_(red).add_(value).sub_(least, alpha=2)
    place.div_(torch.clamp(chroma, min=1e-12, out=least)).copysign_(torch.sub(green, blue, out=smaller))
    place.mul_(1 / 6).add_(shift + 1).frac_().mul_(6)  # in [0, 6)
    # A channel is at `value` up to one side from the middle of its part, and falls by `chroma` over the next side.
    fall = torch.sub(place, 3, out=smaller).abs_().neg_().add_(2).clamp_(0, 1)
    torch.addcmul(value, chroma, fall, value=-1, out=red)
    for channel, middle in ((green, 2), (blue, 4)):
        torch.sub(place, middle, out=fall).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(value, chroma, fall, value=-1, out=channel)
    return pixels


def grey(pixels: Tensor, _: Tensor | float) -> Tensor:
    """Return RGB [B, 3, H, W] with all three channels equal to their grey value, in place."""
    return pixels.copy_(luma(pixels).expand_as(pixels))


def solarise(pixels: Tensor, threshold: Tensor | float) -> Tensor:
    """Return [B, C, H, W] with values at or above `threshold` [B, 1, 1, 1], or one for all, inverted, in place."""
    # Half a grey level of slack: 128/255 in float32 must count as reaching the threshold 128.
    least = threshold - 0.5 / 255
    if isinstance(least, Tensor):
        return pixels.copy_(torch.where(pixels >= least, 1 - pixels, pixels))
    # x - 2 (x - 1/2) = 1 - x without a selection, which is much slower on a CPU.
    return pixels.sub_(torch.nn.functional.threshold(pixels - 0.5, least - 0.5, 0.0), alpha=2)


def blur(pixels: Tensor, sigma_px: Tensor) -> Tensor:
    """Blur [B, C, H, W] with a Gaussian of `sigma_px` [B, 1, 1, 1] (on the CPU), one per image, repeating edges.

    This is Pillow's GaussianBlur(radius=sigma): three passes of a box with fractional ends. One pass is a banded
    matrix, so three passes are its cube, and the blur is one product from each side.
    """
    sigma = sigma_px.flatten()
    height, width = pixels.shape[2:]
    down = _three_passes(sigma, height, pixels.device)[:, None]
    across = down if width == height else _three_passes(sigma, width, pixels.device)[:, None]
    return torch.matmul(torch.matmul(down, pixels), across.mT)


def _blur_each(pixels: Tensor, sigma: Tensor, *, grey: Sequence[bool]) -> None:
    """Apply `blur` to the images [B, C, H, W] with nonzero `sigma` [B] in place, on a CPU.

    Products of blocks skip most of the zeros outside the band. All channels of images that are `grey` [B] are equal, so
    only the first channel is computed.
    """
    rows = sigma.nonzero()[:, 0]
    if len(rows) == 0:
        return
    reaches = [_BLUR_PASSES * _box_reach(value) for value in sigma[rows].tolist()]
    block = -(-max(reaches) // _BLOCK_PX) * _BLOCK_PX
    height, width = pixels.shape[2:]
    if min(height, width) < 3 * block or not pixels.is_contiguous():
        _change(pixels, sigma > 0, sigma, SIGMA)
        return
    # All blocks between the first and the last are alike, so three blocks describe all of them.
    sides = [side - (side // block - 3) * block for side in (height, width)]
    down = _three_passes(sigma[rows], sides[0], pixels.device)
    across = down if sides[0] == sides[1] else _three_passes(sigma[rows], sides[1], pixels.device)
    half = torch.empty_like(pixels[0])  # blurred vertically only
    for number, (row, reach) in enumerate(zip(rows.tolist(), reaches, strict=True)):
        channels = pixels[row, :1] if grey[row] else pixels[row]
        for channel, blurred in zip(channels, half[: len(channels)], strict=True):
            _multiply(down[number], channel, blurred, reach, block)
        lines = half[: len(channels)].view(-1, width)
        _multiply(across[number], lines.mT, channels.view(-1, width).mT, reach, block)
        if grey[row]:
            pixels[row, 1:] = channels


def _multiply(matrix: Tensor, lines: Tensor, out: Tensor, reach: int, block: int) -> None:
    """Write the product of `matrix`, given as three blocks, and the lines [L, N] into `out`."""
    last = matrix[2 * block :, 2 * block - reach :]
    between = len(lines) // block - 2
    end = (between + 1) * block
    torch.mm(matrix[:block, : block + reach], lines[: block + reach], out=out[:block])
    torch.mm(last, lines[end - reach :], out=out[end:])
    middle = matrix[block : 2 * block, block - reach : 2 * block + reach].expand(between, -1, -1)
    windows = lines[block - reach : end + reach].unfold(0, block + 2 * reach, block).mT
    torch.bmm(middle, windows, out=out[block:end].view(between, block, -1))


def _box_reach(sigma_px: float) -> int:
    """Return the radius of a box, including its fractional end."""
    return int(((12 * sigma_px**2 / _BLUR_PASSES + 1) ** 0.5 - 1) / 2) + 1


def _box(sigma_px: float, farthest: int) -> list[float]:
    """Return the weights of one box at -farthest .. farthest; their sum is one."""
    variance, last = sigma_px**2 / _BLUR_PASSES, _box_reach(sigma_px)
    end = (2 * last - 1) * ((last - 1) * last - 3 * variance) / (6 * (variance - last**2))
    total = 2 * last - 1 + 2 * end
    sides = [1 / total if place < last else end / total if place == last else 0.0 for place in range(farthest + 1)]
    return sides[:0:-1] + sides


def _three_passes(sigma: Tensor, size_px: int, device: torch.device) -> Tensor:
    """Return [B, size, size], the three passes along a side, each row summing to one."""
    sigmas = sigma.tolist()
    farthest = _box_reach(max(sigmas))
    weight = torch.tensor([_box(one, farthest) for one in sigmas]).to(device, non_blocking=True)  # [B, taps]
    offset = torch.arange(-farthest, farthest + 1)
    source = (torch.arange(size_px)[:, None] + offset).clamp_(0, size_px - 1)  # [size, taps], edges repeated
    source = source.to(device, non_blocking=True)
    box = torch.zeros(len(sigmas), size_px, size_px, device=device)
    batch = (len(sigmas), *source.shape)
    box.scatter_add_(2, source.expand(batch), weight[:, None].expand(batch))
    return box @ box @ box


_OPERATIONS = {
    BRIGHTNESS: brightness,
    CONTRAST: contrast,
    SATURATION: saturation,
    HUE: hue,
    GREY: grey,
    SIGMA: blur,
    SOLARISE: solarise,
}
