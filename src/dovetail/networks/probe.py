"""Small trial runs that check which image sizes a network supports, without changing it."""

from __future__ import annotations

from collections.abc import Collection

import torch

from dovetail.errors import ModelError
from dovetail.networks.network import Network
from dovetail.networks.undisturbed import undisturbed
from dovetail.views.view import View


def trial_view(network: Network, *, size_px: int, batch_size: int) -> View:
    """Return a view of noise, [B, in_channels, size, size], with the network's device and dtype.

    A network with query patches gets one per image.
    """
    like = next(network.parameters())
    shape = [batch_size, network.in_channels, size_px, size_px]
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
        source_px=torch.full((batch_size, 2), float(size_px), device=like.device),
        queries=queries,
        query_box=None if queries is None else whole[:, None],
    )


def check_image_size(
    network: Network, size_px: int, *, taps: Collection[str] | None = None, batch_size: int = 2
) -> None:
    """Raise `ModelError` if the network cannot train on images of `size_px` in batches of `batch_size`.

    Runs one forward pass in training mode, without gradients and without changing the network.

    Args:
        network: Any network.
        size_px: Side length of the square images.
        taps: Used taps; None uses all except a ViT's queries, which need a view with query patches.
        batch_size: Number of images in a forward pass on one device.
    """
    multiple = network.size_multiple
    taps = taps or [tap for tap in network.taps if tap != "queries"]
    if size_px < multiple or size_px % multiple:
        nearest = max(round(size_px / multiple), 1) * multiple
        raise ModelError(
            f"The model does not support images of {size_px} px; the size must be a multiple of {multiple}, such as "
            f"{nearest}."
        )
    try:
        with undisturbed(network), torch.no_grad():
            network.train()
            network(trial_view(network, size_px=size_px, batch_size=batch_size), taps)
    except (RuntimeError, ValueError, AssertionError) as error:
        if "more than 1 value per channel" in str(error):
            raise ModelError(
                f"The model's BatchNorm gets a single value per channel with {batch_size} image(s) of {size_px} px; "
                "use larger batches per device or larger images."
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(
            f"The model does not support images of {size_px} px ({reason}); use the size that it was built for, "
            f"{network.image_size}."
        ) from error
