"""Small things that tests share: images' views without files, a tiny recipe and learner of any method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dovetail.networks.build import build_network
from dovetail.networks.random_start import fix_positions
from dovetail.recipe import Recipe, Tap
from dovetail.recipes.table import METHODS, build, options_of, parse
from dovetail.schedules import Moment
from dovetail.train.learner import Learner
from dovetail.train.reference import build_learner
from dovetail.views.plan import ViewPlan
from dovetail.views.points import with_points
from dovetail.views.view import View

CNN = "timm.create_model('test_resnet', channels=(8, 8, 16, 16))+fpn(channels=16)"  # with a tenth of its weights
VIT = "timm.create_model('test_vit', depth=2)+fpn(channels=16)"  # two blocks of six, which are cut apart in shards
SHALLOW_VIT = "timm.create_model('test_vit', depth=1)+fpn(channels=16)"  # every block is alike
BATCH = 4
START = Moment(0, 100, 10)

# Only those that a method has are given to it.
TINY_OPTIONS: dict[str, Any] = {
    "hidden": 24,
    "dim": 8,
    "prototypes": 6,
    "bottleneck": 8,
    "predictor_hidden": 16,
    "queue": 16,
    "image_size": 64,
    "local_size": 32,
    "local_crops": 2,
    "queries": 3,
    "query_size": 32,
    "segments": 5,
    "decoder_grid": 8,
    "decoder_hidden": 24,
    "decoder_dim": 8,
    "decoder_prototypes": 6,
}


def tiny_options(method: str) -> dict[str, Any]:
    """Return small sizes for a method's options."""
    known = options_of(method)
    return {name: value for name, value in TINY_OPTIONS.items() if name in known}


def tiny_model(method: str) -> str:
    """Return the name of a tiny model that a method can train."""
    return VIT if METHODS[parse(method).base].family == "tokens" else CNN


def tiny_recipe(method: str, taps: Mapping[str, Tap], **options: Any) -> Recipe:
    """Return a method's recipe with small heads."""
    return build(method, taps, tiny_options(method) | options)


def tiny_learner(method: str, *, model: str | None = None, seed: int = 0, **options: Any) -> Learner:
    """Return a learner of `method` on a tiny network; `options` are those of the recipe."""
    torch.manual_seed(seed)
    network = build_network(model or tiny_model(method), image_size=options.get("image_size", 64))
    recipe = tiny_recipe(method, network.taps, **options)
    if recipe.query_rule.positions == "sincos":
        fix_positions(network)
    return build_learner(recipe, network)


def shallow_learner(method: str) -> Learner:
    """Return a tiny learner whose ViT, if it has one, has one block, for what takes long on every operation."""
    return tiny_learner(method, model=SHALLOW_VIT if tiny_model(method) == VIT else None)


def make_views(plan: ViewPlan, *, batch: int = BATCH, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[View]:
    """Return random views that fit `plan`: crops that overlap, of noise with some structure."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(batch, 3, 6, 6, generator=generator)
    views = []
    for spec in plan.views:
        corner = torch.rand(batch, 2, generator=generator) * 0.3
        extent = 0.5 + torch.rand(batch, 2, generator=generator) * 0.2
        pixels = torch.nn.functional.interpolate(patterns, spec.sides, mode="bilinear")
        pixels = pixels + 0.3 * torch.randn(pixels.shape, generator=generator)
        is_global = spec.role == "global"
        mask = random_mask(plan, spec.sides, batch, generator) if is_global else None
        views.append(
            View(
                pixels=pixels.to(dtype),
                box=torch.cat([corner, corner + extent], dim=1),
                flipped=torch.rand(batch, generator=generator) < 0.5,
                source_px=torch.full((batch, 2), 128.0),
                role=spec.role,
                mask=mask,
                masked=None if mask is None else int(mask.sum()),
                queries=random_queries(plan, batch, seed, dtype) if is_global else None,
                query_box=query_boxes(plan, batch, seed) if is_global else None,
                segments=random_segments(plan, spec.sides, batch, seed),
                picks=random_picks(plan, batch, generator),
            )
        )
    return with_points(views, plan.points, np.random.default_rng(seed))


def random_mask(plan: ViewPlan, sides: tuple[int, int], batch: int, generator: torch.Generator) -> torch.Tensor | None:
    """Return [B, h, w] bool with about a third of the patches masked; None if the plan masks none."""
    if plan.masks is None:
        return None
    height, width = (side // plan.masks.patch_px for side in sides)
    mask = torch.rand(batch, height, width, generator=generator) < 0.3
    mask[:, 0, 0] = True
    return mask


def random_segments(plan: ViewPlan, sides: tuple[int, int], batch: int, seed: int) -> torch.Tensor | None:
    """Return [B, H, W] int32 with blocks of four segments, the same in all views; None without segments."""
    if plan.segments is None:
        return None
    generator = torch.Generator().manual_seed(seed + 3)
    blocks = torch.randint(4, (batch, 1, 2, 2), generator=generator, dtype=torch.int32)
    return torch.nn.functional.interpolate(blocks.float(), sides)[:, 0].int()


def random_picks(plan: ViewPlan, batch: int, generator: torch.Generator) -> torch.Tensor | None:
    """Return [B, S] in [0, 1); None without segments."""
    return None if plan.segments is None else torch.rand(batch, plan.segments.count, generator=generator)


def random_queries(plan: ViewPlan, batch: int, seed: int, dtype: torch.dtype) -> torch.Tensor | None:
    """Return [B, S, 3, P, P], the same for both global views; None if the plan has no queries."""
    if plan.queries is None:
        return None
    generator = torch.Generator().manual_seed(seed + 1)
    size = plan.queries.size_px
    return torch.randn(batch, plan.queries.count, 3, size, size, generator=generator).to(dtype)


def query_boxes(plan: ViewPlan, batch: int, seed: int) -> torch.Tensor | None:
    """Return [B, S, 4] boxes of the queries in the image; None if the plan has no queries."""
    if plan.queries is None:
        return None
    corner = torch.rand(batch, plan.queries.count, 2, generator=torch.Generator().manual_seed(seed + 2)) * 0.5
    return torch.cat([corner, corner + 0.3], dim=2)
