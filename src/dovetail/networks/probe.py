"""Small trial runs that check which image sizes a network supports, without changing it."""

from __future__ import annotations

from collections.abc import Collection

import torch

from dovetail.errors import ModelError
from dovetail.networks.network import Network
from dovetail.networks.undisturbed import undisturbed
from dovetail.sizes import Size, multiple_of, sides, size_in_words
from dovetail.views.view import View


def trial_view(network: Network, *, size_px: Size, batch_size: int) -> View:
    """Return a view of noise, [B, in_channels, height, width], with the network's device and dtype.

    A network with query patches gets one per image.
    """
    like, (height, width) = next(network.parameters()), sides(size_px)
    shape = [batch_size, network.in_channels, height, width]
    pixels = torch.randn(shape, device=like.device, dtype=like.dtype)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=like.device).expand(batch_size, 4)
    queries = None
    if "queries" in network.taps:
        patch = network.taps["queries"].stride * network.rules.query_rule.tokens_per_side
        queries = torch.randn(batch_size, 1, network.in_channels, patch, patch, device=like.device, dtype=like.dtype)
    return View(
        pixels=pixels,
        box=whole,
        flipped=torch.zeros(batch_size, dtype=torch.bool, device=like.device),
        source_px=torch.tensor([[float(width), float(height)]], device=like.device).expand(batch_size, 2),
        queries=queries,
        query_box=None if queries is None else whole[:, None],
    )


def check_image_size(
    network: Network, size_px: Size, *, taps: Collection[str] | None = None, batch_size: int = 2
) -> None:
    """Raise `ModelError` if the network cannot train on images of `size_px` in batches of `batch_size`.

    Runs one forward pass in training mode, without gradients and without changing the network.

    Args:
        network: Any network.
        size_px: Side of square images, or (height, width), in pixels.
        taps: Used taps; None uses all except a ViT's queries, which need a view with query patches.
        batch_size: Number of images in a forward pass on one device.
    """
    multiple = network.size_multiple
    taps = taps or [tap for tap in network.taps if tap != "queries"]
    shown = size_in_words(size_px)
    if any(side < multiple or side % multiple for side in sides(size_px)):
        must = "the size must be a multiple" if shown.isdecimal() else "height and width must be multiples"
        nearest = size_in_words(multiple_of(size_px, multiple))
        raise ModelError(f"The model does not support images of {shown} px; {must} of {multiple}, such as {nearest}.")
    try:
        with undisturbed(network), torch.no_grad():
            network.train()
            network(trial_view(network, size_px=size_px, batch_size=batch_size), taps)
    except (RuntimeError, ValueError, AssertionError) as error:
        if "more than 1 value per channel" in str(error):
            raise ModelError(
                f"The model's BatchNorm gets a single value per channel with {batch_size} image(s) of {shown} px; "
                "use larger batches per device or larger images."
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(
            f"The model does not support images of {shown} px ({reason}); use the size that it was built for, "
            f"{size_in_words(network.image_size)}."
        ) from error
