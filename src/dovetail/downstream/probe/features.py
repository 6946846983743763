"""Frozen features of images, which are computed once and cached in a file.

* ViT: concatenated class tokens of the last n blocks after the final norm (DINO's linear protocol: n = 4; kNN: n = 1),
  or the mean over patches without a class token.
* Others: the mean over the encoder's deepest feature map.

Shapes: B images, C channels of the pixels, S pixels a side, D = n x width of the features.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dovetail.downstream.labels.class_sets import ClassSet
from dovetail.downstream.labels.images import central
from dovetail.downstream.machine import Machine, ahead, normalised
from dovetail.errors import OptionsError
from dovetail.files.tensors import write_tensors
from dovetail.networks.network import Network, deepest_encoder_tap
from dovetail.networks.vit import ViTNetwork
from dovetail.sizes import Size
from dovetail.views.view import View


class Features(nn.Module):
    """The frozen features of a network: [B, C, h, w] -> [B, D].

    Args:
        network: Network.
        blocks: For a ViT: number of last blocks whose class tokens are concatenated.
    """

    def __init__(self, network: Network, *, blocks: int = 1) -> None:
        super().__init__()
        self.network = network
        self.blocks = blocks
        if isinstance(network, ViTNetwork):
            depth = len(network.vit.blocks)
            if not 1 <= blocks <= depth:
                raise OptionsError(f"blocks expects a number from 1 to {depth} for this model, got {blocks}.")
            self.width = blocks * int(network.vit.embed_dim)
        else:
            self.tap = deepest_encoder_tap(network.taps)
            self.width = network.taps[self.tap].channels

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of normalised pixels."""
        view = whole_view(pixels)
        if isinstance(self.network, ViTNetwork):
            return self._tokens(self.network, view)
        found: Tensor = self.network(view, (self.tap,))[self.tap]
        return found.mean(dim=(2, 3))

    def _tokens(self, network: ViTNetwork, view: View) -> Tensor:
        depth = len(network.vit.blocks)
        chosen = range(depth - self.blocks, depth)
        encoded = network.encode(view, with_queries=False, keep=chosen)
        normed = [network.final_norm(encoded.kept[index]) for index in chosen]
        if network.vit.cls_token is not None:
            return torch.cat([tokens[:, 0] for tokens in normed], dim=1)
        return torch.cat([tokens[:, network.vit.num_prefix_tokens :].mean(1) for tokens in normed], dim=1)


def whole_view(pixels: Tensor) -> View:
    """Return pixels [B, C, H, W] as views of whole images."""
    return View.of(pixels)


@torch.no_grad()
def of_central_crops(
    model: nn.Module,
    data: ClassSet,
    *,
    size: Size,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    machine: Machine,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Return the outputs (features or logits) of a model for the centre crops of all images, [N, D] float32 on the CPU.

    Args:
        model: Module [B, C, h, w] -> [B, D], which is put into evaluation mode.
        data: Images.
        size: Size of the crops in pixels.
        mean: Mean of each channel in [0, 1].
        std: Standard deviation of each channel.
        machine: Device and precision.
        batch_size: Number of images in a forward pass.
        on_batch: Called after each batch with the number of images.
    """
    machine.place(model).eval()
    crops = ahead(
        lambda index: central(data, index, channels=len(mean), size=size), range(len(data)), threads=machine.threads
    )
    found: list[Tensor] = []
    for batch in batched(crops, batch_size):
        with machine.autocast():
            found.append(model(normalised(torch.stack(batch).to(machine.device), mean, std)).float().cpu())
        if on_batch is not None:
            on_batch(len(batch))
    return torch.cat(found)


def batched(items: Iterator[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Yield lists of up to `size` items."""
    while batch := list(itertools.islice(items, size)):
        yield batch


def kept_features(
    folder: Path, compute: Callable[[], Tensor], data: ClassSet, *, marks: tuple[object, ...]
) -> tuple[Tensor, Path]:
    """Return features from the cache in `folder`, or compute and cache them. Also returns the path of the file.

    Args:
        folder: Folder of the cache.
        compute: Computes the features.
        data: Images. If their files change or move, features are computed again.
        marks: Further values that the features depend on: weights, size, blocks.
    """
    text = repr((data.identity(), *marks))
    path = folder / f"{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.safetensors"
    if path.is_file():
        try:
            return load_file(path)["features"], path
        except (SafetensorError, KeyError):
            path.unlink()  # truncated: writing it was interrupted
    features = compute()
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    write_tensors({"features": features.contiguous()}, partial)
    partial.replace(path)
    return features, path
