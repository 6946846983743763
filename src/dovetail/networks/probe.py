"""Small trial runs of a network that leave it as it was: which image sizes it takes."""

from __future__ import annotations

from collections.abc import Collection

import torch

from dovetail.errors import ModelError
from dovetail.networks.network import Network
from dovetail.networks.undisturbed import undisturbed
from dovetail.views.view import View


def trial_view(network: Network, *, size_px: int, batch_size: int) -> View:
    """Return a view of noise, [B, in_channels, size, size], on the network's device and of its dtype.

    A network that takes query patches gets one for each image.
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
    """Raise `ModelError` when the network cannot train on images of `size_px` in batches of `batch_size`.

    Runs one forward in training mode, without gradients, and leaves the network as it was.

    Args:
        network: Any network.
        size_px: Side of the square pixels.
        taps: The taps in use; for None all of them but a ViT's queries, which need a view with query patches.
        batch_size: Images in one forward on one device.
    """
    multiple = network.size_multiple
    taps = taps or [tap for tap in network.taps if tap != "queries"]
    if size_px < multiple or size_px % multiple:
        nearest = max(round(size_px / multiple), 1) * multiple
        raise ModelError(
            f"Images of {size_px} px do not fit the model, whose sides must be multiples of {multiple}; the nearest "
            f"size is {nearest}."
        )
    try:
        with undisturbed(network), torch.no_grad():
            network.train()
            network(trial_view(network, size_px=size_px, batch_size=batch_size), taps)
    except (RuntimeError, ValueError, AssertionError) as error:
        if "more than 1 value per channel" in str(error):
            raise ModelError(
                f"The model's BatchNorm sees a single value per channel with {size_px} px and {batch_size} image(s) at "
                "a time; use larger batches per device or larger images."
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(
            f"The model cannot take images of {size_px} px ({reason}); try the size it was built for, "
            f"{network.image_size}."
        ) from error
