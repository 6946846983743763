"""segmentation_models_pytorch's DPT with the token taps of its ViT: `cls`, `patches`, `queries` and `p1`..`p4`.

DPT: Ranftl et al., "Vision Transformers for Dense Prediction", 2021, https://arxiv.org/abs/2103.13413. The library's
layers run, and its `state_dict` is exported unchanged.

Shapes: B images, h x w patches, C channels of the ViT, D of the decoder, n fused blocks (4 by default).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import segmentation_models_pytorch as smp
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from dovetail.networks.network import Construction
from dovetail.networks.vit import ViTNetwork, is_vit
from dovetail.recipe import Tap
from dovetail.views.view import View


class DPTNetwork(ViTNetwork):
    """`smp.DPT` as a network. Its finest map, `p1`, has half of the image's resolution."""

    model: smp.DPT

    def __init__(self, model: smp.DPT, *, construction: Construction | None) -> None:
        super().__init__(model, construction=construction)
        self.encoder_prefix, self.decoder_prefixes = "encoder.", ("decoder.",)
        decoder: Any = model.decoder
        count = len(decoder.fusion_blocks)
        channels = int(decoder.fusion_blocks[0].project.out_channels)
        # The coarsest features have stride 2 ** (n + 1); every fusion doubles the resolution.
        self.fusion_of = {f"p{count - index}": index for index in range(count)}
        for name, index in self.fusion_of.items():
            self.taps[name] = Tap(channels, 2 ** (count - index), "map", "decoder")
        self.size_multiple = max(self.size_multiple, 2 ** (count + 1))

    @property
    def vit(self) -> Any:
        """The timm model; untyped, as timm is."""
        return self.model.encoder.model

    def answer(self, view: View, taps: Collection[str]) -> dict[str, Tensor]:
        """Return the named taps, from one pass through the ViT."""
        wanted = {self.fusion_of[tap]: tap for tap in taps if tap in self.fusion_of}
        blocks: list[int] = [index % len(self.vit.blocks) for index in self.model.encoder._output_indices]
        encoded = self.encode(view, with_queries="queries" in taps, keep=blocks if wanted else ())
        outputs = self.token_taps(encoded, view, taps)
        if wanted:
            outputs |= self._decode([encoded.kept[block] for block in blocks], view, wanted)
        return outputs

    def _decode(self, raw: list[Tensor], view: View, wanted: dict[int, str]) -> dict[str, Tensor]:
        """Return the requested maps [B, D, H, W] from the raw tokens [B, T, C] of the blocks, shallowest first."""
        decoder: Any = self.model.decoder
        prefix = self.vit.num_prefix_tokens
        features = self.drop_laterals([self.as_map(tokens, view) for tokens in raw])
        fused: Tensor | None = None
        outputs: dict[str, Tensor] = {}
        for index in range(max(wanted) + 1):
            source = len(raw) - 1 - index  # deepest first
            tokens = raw[source][:, :prefix] if prefix else None
            projected = decoder.projection_blocks[source](features[source], tokens)
            fused = decoder.fusion_blocks[index](decoder.reassemble_blocks[source](projected), fused)
            if index in wanted:
                assert fused is not None
                outputs[wanted[index]] = fused
        return outputs


def gives_tokens(model: nn.Module) -> bool:
    """Whether `model` is a DPT on a supported ViT."""
    if not isinstance(model, smp.DPT):
        return False
    encoder: Any = model.encoder.model
    return is_vit(encoder) and isinstance(encoder.patch_embed, PatchEmbed)
