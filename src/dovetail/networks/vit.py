"""Any timm ViT as a network: class token, patches, masks (iBOT) and query tokens (ADCLR, PQCL), with timm's own blocks.

Supported: `VisionTransformer` (DeiT with or without a distillation token, DeiT III, DINOv2, registers, layer scale,
qk-norm) and `Eva` (EVA-02, DINOv3, RoPE-ViT). The module is not changed, so its `state_dict` loads strictly into timm.
The mask token is a parameter outside of it. Raw tokens are bit-identical to timm's, with and without queries.

Taps: `cls` [B, C] (`pooled` [B, C], timm's pooled features, without a class token), `patches` [B, N, C] after the final
norm, `patches_prenorm` [B, N, C] before it, `queries` [B, S, C] after it ([B, S g, C] for queries of mask tokens), and
`patches` as a map [B, C, h, w] named by the rounded logarithm of its stride (patch 16 and 14: `c4`, patch 8: `c3`).

Shapes: B images, h x w patches, N = h w, T = N + class and register tokens, S queries of g tokens, C channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dovetail.errors import ModelError, unknown_name
from dovetail.heads.base import Kind
from dovetail.networks.known import unknown_timm
from dovetail.networks.network import Construction, Network, split_points
from dovetail.networks.probe import trial_view
from dovetail.networks.timm_names import CREATE, TimmName, create_timm
from dovetail.networks.vit_attention import Rotations, Streams, takes_queries, two_streams
from dovetail.networks.vit_embed import embed, patch_px
from dovetail.recipe import Tap
from dovetail.sizes import Size, as_size, sides
from dovetail.views.view import View


class Encoded(NamedTuple):
    """Tokens after the last block, before the final norm, and raw tokens after the requested blocks."""

    raw: Tensor
    queries: Tensor | None
    kept: dict[int, Tensor]


class ViTNetwork(Network):
    """A timm ViT; see the module's docstring. `mask_token` [1, C] is only trained by recipes with masks."""

    def __init__(self, model: nn.Module, *, construction: Construction | None) -> None:
        super().__init__()
        self.model = model
        self.constructor = str(construction) if construction else f"{type(model).__module__}.{type(model).__qualname__}"
        self.encoder_prefix, self.decoder_prefixes = "", ()
        self.query_pass = two_streams  # replaced when weights are sharded
        self.is_teacher = False
        check_model(self.vit)
        self._declare(self.vit)

    def _declare(self, vit: Any) -> None:
        """Set the attributes that depend on the ViT."""
        stride, channels = patch_px(vit), int(vit.embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, channels))  # zeros, decayed like a matrix, as in iBOT
        self.in_channels = int(vit.patch_embed.proj.in_channels)
        self.size_multiple = stride
        self.image_size = as_size(tuple(vit.patch_embed.img_size))
        kinds: dict[str, Kind] = {"cls" if vit.cls_token is not None else "pooled": "vector", "patches": "tokens"}
        kinds |= {"patches_prenorm": "tokens", map_name(stride): "map"}
        if all(takes_queries(block) for block in vit.blocks):
            kinds["queries"] = "tokens"
        self.taps = {name: Tap(channels, stride, kind, "encoder") for name, kind in kinds.items()}

    @property
    def vit(self) -> Any:
        """The timm model; untyped, as timm is."""
        return self.model

    def blocks(self) -> list[nn.Module]:
        """Return the transformer's blocks."""
        return list(self.vit.blocks)

    def forward(self, view: View, taps: Collection[str]) -> dict[str, Tensor]:
        """Return the named taps for a view; computes only what they need."""
        for tap in split_points(taps)[0]:
            if tap not in self.taps:
                raise unknown_name("tap", tap, self.taps, error=ModelError)
        return self.answer(view, taps)

    def answer(self, view: View, taps: Collection[str]) -> dict[str, Tensor]:
        """Return the named taps, which all exist."""
        return self.token_taps(self.encode(view, with_queries="queries" in taps), view, taps)

    def encode(self, view: View, *, with_queries: bool, keep: Collection[int] = ()) -> Encoded:
        """Run embedding and blocks; `keep` lists blocks whose raw tokens [B, T, C] are returned too."""
        vit, kept = self.vit, {}
        raw, queries, rotations = embed(
            vit,
            view,
            mask_token=self.mask_token,
            with_queries=with_queries and not self.encodes_crops,
            rule=self.rules.query_rule,
            official_positions=self.rules.official_positions,
        )
        for index, block in enumerate(vit.blocks):
            raw, queries = self.through_block(block, raw, queries, rotations[index])
            if index in keep:
                kept[index] = raw
        return Encoded(raw, queries, kept)

    def through_block(self, block: nn.Module, raw: Tensor, queries: Tensor | None, rotations: Rotations) -> Any:
        """Run one block, recomputed in the backward pass if timm's `set_grad_checkpointing` is enabled."""

        def run(raw: Tensor, queries: Tensor | None) -> tuple[Tensor, Tensor | None]:
            if queries is not None:
                rule = {"attention": self.rules.query_rule.attention, "group": self.rules.query_rule.tokens_per_side**2}
                return tuple(self.query_pass(block, Streams(raw, queries), rotations, **rule))  # type: ignore[arg-type, return-value]
            return (block(raw) if rotations.raw is None else block(raw, rope=rotations.raw)), None

        if self.vit.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(run, raw, queries, use_reentrant=False)
        return run(raw, queries)

    def token_taps(self, encoded: Encoded, view: View, taps: Collection[str]) -> dict[str, Tensor]:
        """Return the taps of the ViT among `taps`."""
        vit, patch = self.vit, self.taps["patches"].stride
        prefix, outputs = vit.num_prefix_tokens, {}
        if "patches_prenorm" in taps:
            outputs["patches_prenorm"] = encoded.raw[:, prefix:]
        if "pooled" in taps:
            outputs["pooled"] = self._pooled(encoded.raw)
        if not {"cls", "patches", map_name(patch)}.isdisjoint(taps):
            normed = self.final_norm(encoded.raw)
            outputs |= {"cls": normed[:, 0], "patches": normed[:, prefix:], map_name(patch): self.as_map(normed, view)}
        if encoded.queries is not None:
            outputs["queries"] = self.query_vectors(self.final_norm(encoded.queries))
        elif "queries" in taps and self.encodes_crops:
            outputs["queries"] = self.patches_of_crops(view)
        return {tap: outputs[tap] for tap in taps if tap in outputs}

    @property
    def encodes_crops(self) -> bool:
        """Whether the crops of queries are encoded separately: in the teacher of a recipe with mask tokens (PQCL)."""
        return self.is_teacher and self.rules.query_rule.content == "mask"

    def become_teacher(self) -> None:
        super().become_teacher()
        self.is_teacher = True

    def query_vectors(self, tokens: Tensor) -> Tensor:
        """Return the vectors of queries: the mean of each query's tokens [B, S g, C], or every mask token."""
        if self.rules.query_rule.content == "mask":
            return tokens
        each = self.rules.query_rule.tokens_per_side**2
        return tokens.reshape(len(tokens), -1, each, tokens.shape[-1]).mean(dim=2)

    def patches_of_crops(self, view: View) -> Tensor:
        """Return [B, S g, C]: the patches of the view's query crops, each encoded as a separate image."""
        if view.queries is None or view.query_box is None:
            raise ModelError("The tap 'queries' needs query crops, but the view has none; add them to the view plan.")
        count = view.queries.shape[1]
        crops = View(
            pixels=view.queries.flatten(0, 1),
            box=view.query_box.flatten(0, 1),
            flipped=torch.zeros_like(view.flipped).repeat_interleave(count),
            source_px=view.source_px.repeat_interleave(count, dim=0),
            role="local",
        )
        patches = self.final_norm(self.encode(crops, with_queries=False).raw)[:, self.vit.num_prefix_tokens :]
        return patches.reshape(len(view.pixels), -1, patches.shape[-1])

    def prune(self, taps: Collection[str]) -> None:
        """Freeze parameters that do not contribute to a tap, and fixed position embeddings."""
        super().prune(taps)
        if self.rules.query_rule.positions == "sincos" and self.vit.pos_embed is not None:
            self.vit.pos_embed.requires_grad_(False)

    def as_map(self, raw: Tensor, view: View) -> Tensor:
        """Return the patches among raw tokens [B, T, C] as a map [B, C, h, w]."""
        patch = self.taps["patches"].stride
        height, width = (side // patch for side in view.pixels.shape[-2:])
        patches = raw[:, self.vit.num_prefix_tokens :]
        return patches.reshape(-1, height, width, raw.shape[-1]).permute(0, 3, 1, 2)

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Normalise tokens; models that normalise after pooling (`fc_norm`) apply this norm to every token."""
        norm = self.vit.fc_norm if isinstance(self.vit.norm, nn.Identity) else self.vit.norm
        normed: Tensor = norm(tokens)
        return normed

    def _pooled(self, raw: Tensor) -> Tensor:
        """Return [B, C]: the input of timm's classifier, or the mean of the patches without pooling."""
        normed = self.vit.norm(raw)
        pooled: Tensor = self.vit.forward_head(normed, pre_logits=True)
        return pooled if pooled.dim() == 2 else self.final_norm(raw)[:, self.vit.num_prefix_tokens :].mean(dim=1)

    def probe_view(self) -> View:
        """Return a small image for trial runs, with a mask and queries if the recipe has them."""
        size = 2 * self.size_multiple if self.vit.dynamic_img_size else self.image_size
        view = trial_view(self, size_px=size, batch_size=1)
        if not self.rules.masks:
            return view
        rows, columns = (side // self.taps["patches"].stride for side in sides(size))
        every_second = torch.arange(rows * columns, device=view.pixels.device).reshape(1, rows, columns) % 2 == 1
        return replace(view, mask=every_second)


def build_vit(
    name_or_module: str | nn.Module,
    *,
    in_channels: int = 3,
    pretrained: bool = False,
    image_size: Size = 224,
    drop_path: float = 0.0,
    checkpoint_blocks: bool = False,
) -> ViTNetwork:
    """Return a timm ViT as a network.

    Args:
        name_or_module: Name of a timm model such as "vit_small_patch16_224", a call of timm such as
            "timm.create_model('vit_small_patch16_224', patch_size=8)", or a VisionTransformer or Eva module, which is
            used unchanged; the options below do not apply to a module.
        in_channels: Number of input channels.
        pretrained: Load timm's weights.
        image_size: Side of the global views, or (height, width), in pixels, for the grid of position embeddings. Views
            of other sizes use interpolated positions.
        drop_path: Stochastic depth of the last block, rising linearly from 0 in the first; off in the teacher.
        checkpoint_blocks: Recompute every block in the backward pass instead of storing its activations.

    Raises:
        ModelError: If the name is unknown or the model is not a supported ViT.
    """
    construction: Construction | None = None
    if isinstance(name_or_module, str):
        named = TimmName.parse(name_or_module)
        if named.plus:
            raise ModelError(f"{name_or_module} has a decoder; leave out +{named.decoder} or call build_vit_fpn.")
        options = vit_options(in_channels=in_channels, image_size=image_size, encoder_options=named.options)
        construction = Construction(CREATE, options, args=(named.name,))
        model = named_vit(named, options, pretrained=pretrained, drop_path=drop_path)
    else:
        model = name_or_module
        check_model(model)
    if checkpoint_blocks:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    return ViTNetwork(model, construction=construction)


def vit_options(
    *, in_channels: int, image_size: Size, encoder_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return options of `timm.create_model` without classifier and for any view size, overridden by `options`."""
    size = {"img_size": image_size, "dynamic_img_size": True}
    return {"num_classes": 0, "in_chans": in_channels, **size, **(encoder_options or {})}


def named_vit(named: TimmName, options: Mapping[str, Any], *, pretrained: bool, drop_path: float) -> nn.Module:
    """Build timm's ViT with `options`; `drop_path` only applies to pre-training and is not in the constructor call.

    Raises:
        ModelError: If the model is not a ViT, timm cannot build it, or stochastic depth is set twice.
    """
    check_name(named.name)
    if drop_path and "drop_path_rate" in options:
        raise ModelError("Both drop_path_rate of the model's call and drop_path are set; leave one out.")
    return create_timm(named.name, {"drop_path_rate": drop_path, **options}, pretrained=pretrained)


def is_vit(name_or_module: str | nn.Module) -> bool:
    """Whether `build_vit` supports this timm model; does not allocate its weights."""
    if isinstance(name_or_module, nn.Module):
        return isinstance(name_or_module, (VisionTransformer, Eva))
    return timm.is_model(name_or_module) and issubclass(class_of(name_or_module), (VisionTransformer, Eva))


def class_of(name: str) -> type[nn.Module]:
    """Return the class of a timm model; does not allocate its weights."""
    return _class_of(name, timm.model_entrypoint(name))


@functools.cache
def _class_of(name: str, entrypoint: Callable[..., nn.Module]) -> type[nn.Module]:
    """Return the class, which only building the model tells; `entrypoint` changes if the name is registered again."""
    with torch.device("meta"):
        return type(timm.create_model(name))


def check_name(name: str) -> None:
    """Raise `ModelError` unless `name` is a timm ViT."""
    if not timm.is_model(name):
        raise unknown_timm(name, "")
    if not is_vit(name):
        raise ModelError(
            f"{name} is a {class_of(name).__name__}, which supports neither masks nor query tokens; choose one of "
            "timm's VisionTransformer or Eva models, such as vit_small_patch16_224."
        )


def check_model(model: nn.Module) -> None:
    """Raise `ModelError` unless tokens, masks and positions of `model` are supported."""
    if not isinstance(model, (VisionTransformer, Eva)):
        raise ModelError(
            f"{type(model).__name__} is not one of timm's VisionTransformer or Eva models; choose one, such as "
            "vit_small_patch16_224."
        )
    if not isinstance(model.patch_embed, PatchEmbed):
        raise ModelError(
            f"The stem {type(model.patch_embed).__name__} mixes pixels of several patches, so masks and queries are "
            "not supported; choose a ViT with plain patch embedding."
        )
    if not isinstance(model.patch_drop, (nn.Identity, type(None))):
        raise ModelError(
            "The ViT drops patches, so its tokens have no fixed positions; build it without patch_drop_rate."
        )


def map_name(stride: int) -> str:
    """Return the name of the patches as a map: `c` and the rounded base-2 logarithm of the patch size."""
    return f"c{round(math.log2(stride))}"
