"""Colour and sharpness: drawn for each image on the CPU, applied to whole batches on the device.

Shapes: B images, C channels, H x W pixels in [0, 1].

The distributions are those of the papers' pipelines (torchvision's ColorJitter, RandomGrayscale and RandomSolarize,
Pillow's GaussianBlur), in their order: jitter, grey, blur, solarise. What departs: arithmetic is float32 and nothing
is rounded to 8 bits between operations. Images whose number of channels is not 3 have no hue, no saturation and are
never turned grey; their brightness, contrast, blur and solarisation treat all channels alike.
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
_ANY_CHANNELS = (BRIGHTNESS, CONTRAST)  # the jitter that images of any number of channels can have
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, Pillow's "L"
_BLUR_PASSES = 3  # of Pillow's box blurs
_BLOCK_PX = 32


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
    """Return the images [B, C, H, W] in [0, 1] after the drawn changes; `pixels` itself is overwritten.

    Args:
        pixels: float32, on any device.
        parameters: [B, NUM_PARAMETERS] on the CPU, where the grouping of images is decided without waiting for
            the device.
    """
    jitter = _jitter_each if pixels.device.type == "cpu" else _jitter_together
    jitter(pixels, parameters)
    _change(pixels, parameters[:, SIGMA] > 0, parameters[:, SIGMA], SIGMA)
    _change(pixels, parameters[:, SOLARISE] <= 1, parameters[:, SOLARISE], SOLARISE)
    return pixels


def _jitter_each(pixels: Tensor, parameters: Tensor) -> None:
    """Jitter and grey, image by image: on a processor an image stays in its cache through all of its operations."""
    colour = pixels.shape[1] == 3
    orders = _ORDERS[parameters[:, ORDER].long()].tolist()
    for index, (row, order) in enumerate(zip(parameters.tolist(), orders, strict=True)):
        image = pixels[index : index + 1]
        for column in order if colour else (each for each in order if each in _ANY_CHANNELS):
            if row[column] != IDENTITY[column]:
                result = _OPERATIONS[column](image, parameters[index, column].view(1, 1, 1, 1))
                if result is not image:
                    image.copy_(result)
        if colour and row[GREY] > 0:
            image.copy_(luma(image).expand_as(image))


def _jitter_together(pixels: Tensor, parameters: Tensor) -> None:
    """Jitter and grey, operation by operation: on a GPU few kernels for many images."""
    colour = pixels.shape[1] == 3
    orders = _ORDERS[parameters[:, ORDER].long()]  # [B, 4]
    for position in range(orders.shape[1]):
        for column in (BRIGHTNESS, CONTRAST, SATURATION, HUE) if colour else _ANY_CHANNELS:
            changed = parameters[:, column] != IDENTITY[column]
            _change(pixels, (orders[:, position] == column) & changed, parameters[:, column], column)
    if colour:
        _change(pixels, parameters[:, GREY] > 0, parameters[:, GREY], GREY)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return [B, C, H, W] with each channel shifted by `mean` and divided by `std`, in place."""
    for channel, (shift, scale) in enumerate(zip(mean, std, strict=True)):
        pixels[:, channel].sub_(shift).div_(scale)
    return pixels


def _change(pixels: Tensor, chosen: Tensor, values: Tensor, column: int) -> None:
    """Overwrite the `chosen` images [B] bool with what the operation of `column` makes of them."""
    rows = chosen.nonzero()[:, 0]
    if len(rows) == 0:
        return
    on_device = rows.to(pixels.device, non_blocking=True)
    value = values[rows]
    if column != SIGMA:  # how far a blur reaches is decided on the host
        value = value.to(pixels.device, non_blocking=True)
    pixels[on_device] = _OPERATIONS[column](pixels[on_device], value[:, None, None, None])


def luma(pixels: Tensor) -> Tensor:
    """Return [B, 1, H, W]: the grey value of RGB pixels; the mean over channels where there are not three."""
    if pixels.shape[1] != 3:
        return pixels.mean(1, keepdim=True)
    red, green, blue = pixels.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])[:, None]


def brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Return [B, C, H, W] blended with black, in place; `factor` [B, 1, 1, 1], 1 is the identity."""
    return pixels.mul_(factor).clamp_(0, 1)


def contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """Return [B, C, H, W] blended with their mean grey value, in place; `factor` [B, 1, 1, 1]."""
    mean = luma(pixels).mean((1, 2, 3), keepdim=True)
    return pixels.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    """Return RGB [B, 3, H, W] blended with their grey version, in place; `factor` [B, 1, 1, 1]."""
    grey = luma(pixels).mul_(1 - factor)
    return pixels.mul_(factor).add_(grey).clamp_(0, 1)


def hue(pixels: Tensor, shift: Tensor) -> Tensor:
    """Return RGB [B, 3, H, W] with the hue turned by `shift` [B, 1, 1, 1], a share of the circle in [-0.5, 0.5]."""
    red, green, blue = pixels.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp(min=1e-12).reciprocal_()
    sextant = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, ((blue - red) * scale).add_(2), ((red - green) * scale).add_(4)),
    )
    sextant.add_(shift[:, 0] * 6)
    result = torch.empty_like(pixels)
    for channel, offset in enumerate((5, 3, 1)):
        distance = sextant + offset
        distance.sub_(torch.floor(distance * (1 / 6)), alpha=6)  # modulo 6, which takes torch.remainder far longer
        ramp = distance.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)  # up to 1 at 1, down again from 3 to 4
        torch.addcmul(value, chroma, ramp, value=-1, out=result[:, channel])
    return result.clamp_(0, 1)


def grey(pixels: Tensor, _: Tensor) -> Tensor:
    """Return RGB [B, 3, H, W] with all three channels equal to their grey value."""
    return luma(pixels).expand_as(pixels)


def solarise(pixels: Tensor, threshold: Tensor) -> Tensor:
    """Return [B, C, H, W] with values at or above `threshold` [B, 1, 1, 1] inverted."""
    # Half a grey level of slack: 128/255 in float32 must count as reaching the threshold 128.
    return torch.where(pixels >= threshold - 0.5 / 255, 1 - pixels, pixels)


def blur(pixels: Tensor, sigma_px: Tensor) -> Tensor:
    """Return [B, C, H, W] blurred by a Gaussian of `sigma_px` [B, 1, 1, 1] (on the CPU), each image by its own; edges
    repeat.

    Pillow's GaussianBlur(radius=sigma): three passes of a box with fractional ends. One pass is a banded matrix, so
    the three are its cube, and the blur is one product from each side.
    """
    sigma = sigma_px.flatten()
    for axis in (2, 3):
        box, reach = _box_matrix(sigma, pixels.shape[axis], pixels.device)
        # Blocks leave out most of the zeros beside the band; a GPU rather multiplies them than starts more kernels.
        block = _BLOCK_PX if pixels.device.type == "cpu" else pixels.shape[axis]
        pixels = torch.cat(
            [_blurred(pixels, box, reach, first, block, axis) for first in range(0, len(box[0]), block)], axis
        )
    return pixels


def _blurred(pixels: Tensor, box: Tensor, reach: int, first: int, block: int, axis: int) -> Tensor:
    """Return the three passes along an axis for `block` places from `first` on."""
    size = pixels.shape[axis]
    places = [slice(max(first - passes * reach, 0), min(first + block + passes * reach, size)) for passes in range(4)]
    weights = box[:, places[0], places[1]] @ box[:, places[1], places[2]] @ box[:, places[2], places[3]]
    if axis == 2:
        return torch.matmul(weights[:, None], pixels[:, :, places[3]])
    return torch.matmul(pixels[..., places[3]], weights[:, None].mT)


def _box_matrix(sigma: Tensor, size_px: int, device: torch.device) -> tuple[Tensor, int]:
    """Return [B, size, size], one pass along a side, each row summing to one; and how far from the diagonal it goes."""
    variance = sigma[:, None].double().square() / _BLUR_PASSES  # of one box
    reach = (((12 * variance + 1).sqrt() - 1) / 2).floor()  # full pixels to each side
    end = (2 * reach + 1) * (reach * (reach + 1) - 3 * variance) / (6 * (variance - (reach + 1).square()))
    farthest = int(((12 * float(sigma.max()) ** 2 / _BLUR_PASSES + 1) ** 0.5 - 1) / 2) + 1
    offset = torch.arange(-farthest, farthest + 1)
    distance = offset.abs()[None]
    weight = torch.where(distance <= reach, 1.0, torch.where(distance == reach + 1, end, 0.0))
    weight = (weight / (2 * reach + 1 + 2 * end)).float().to(device, non_blocking=True)  # [B, taps]
    place = torch.arange(size_px)
    source = (place[:, None] + offset).clamp(0, size_px - 1)  # [size, taps], edges repeated
    source = source.to(device, non_blocking=True)
    box = torch.zeros(len(sigma), size_px, size_px, device=device)
    batch = (len(sigma), *source.shape)
    return box.scatter_add_(2, source.expand(batch), weight[:, None].expand(batch)), farthest


_OPERATIONS = {
    BRIGHTNESS: brightness,
    CONTRAST: contrast,
    SATURATION: saturation,
    HUE: hue,
    GREY: grey,
    SIGMA: blur,
    SOLARISE: solarise,
}
