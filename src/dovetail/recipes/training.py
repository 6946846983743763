"""Options of every recipe that concern its training alone: another optimiser, and rates by part of the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dovetail.errors import OptionsError
from dovetail.recipe import OptimiserSpec, ParameterRule, Recipe

OptimiserName = Literal["lars", "lamb", "sgd", "adamw"]


@dataclass(frozen=True)
class Rates:
    """What an optimiser starts from where a recipe was published with another one.

    Attributes:
        base_lr: Peak learning rate at a global batch of 256 images.
        weight_decay: Constant.
        decay_one_dimensional: Whether biases and norm parameters are decayed.
    """

    base_lr: float
    weight_decay: float
    decay_one_dimensional: bool = False


DEFAULT_RATES: Mapping[str, Rates] = {
    "adamw": Rates(2e-4, 0.05),  # DeCon's ConvNeXt runs
    "lars": Rates(1.0, 1e-5),  # SlotCon, PixPro
    "sgd": Rates(0.03, 1e-4, decay_one_dimensional=True),  # MoCo v2, DenseCL
    "lamb": Rates(6.25e-4, 0.02),  # arXiv 2110.00476, procedure A2: 5e-3 at a batch of 2048
}


def training(
    recipe: Recipe,
    *,
    named: Collection[str] = (),
    optimiser: Literal["published", "lars", "lamb", "sgd", "adamw"] = "published",
    encoder_lr_scale: float = 1.0,
    decoder_lr_scale: float = 1.0,
    layer_decay: float = 1.0,
    encoder_init: Literal["library", "published"] = "library",
) -> Recipe:
    """Return the recipe with the optimiser that was asked for.

    Args:
        recipe: As published.
        named: Options that were given other values than the published ones; these count, and not the optimiser's own.
        optimiser: Optimiser in place of the published one. It has rates of its own where `base_lr` and `weight_decay`
            are left as published: adamw 2e-4 and 0.05, lars 1.0 and 1e-5, sgd 0.03 and 1e-4, lamb 6.25e-4 and 0.02. A
            run chooses adamw by itself where a method that was published with LARS meets an encoder with LayerNorm and
            no BatchNorm (ViT, ConvNeXt).
        encoder_lr_scale: Factor of the learning rate of the encoder's weights.
        decoder_lr_scale: Factor of the learning rate of the decoder's weights; the heads have neither.
        layer_decay: Factor from the learning rate of a layer of the encoder (a ViT's block, a CNN's stage) to that of
            the layer before it, in (0, 1]; what comes after the encoder has the full rate.
        encoder_init: How an encoder with random weights begins: as its library has it, or as the method's published
            code. A ResNet's convolutions and last norms, and a ViT's class token, differ.
    """
    if encoder_init == "library":
        recipe = replace(recipe, encoder_init=None)
    spec = recipe.optimiser
    if optimiser != "published" and optimiser != spec.name:
        spec = exchanged(spec, optimiser, named)
    if not 0 < layer_decay <= 1:
        raise OptionsError(f"layer_decay is {layer_decay:g}; it must be above 0 and at most 1.")
    spec = replace(spec, encoder_lr_scale=encoder_lr_scale, decoder_lr_scale=decoder_lr_scale, layer_decay=layer_decay)
    return replace(recipe, optimiser=spec)


def exchanged(spec: OptimiserSpec, name: OptimiserName, named: Collection[str]) -> OptimiserSpec:
    """Return `spec` for another optimiser: its warm-up, shape, clipping and rules stay."""
    rates = DEFAULT_RATES[name]
    keeps_decay = not {"weight_decay", "final_weight_decay"}.isdisjoint(named)
    base_lr = spec.base_lr if "base_lr" in named else rates.base_lr
    return replace(
        spec,
        name=name,
        base_lr=base_lr,
        weight_decay=spec.weight_decay if keeps_decay else rates.weight_decay,
        decay_one_dimensional=rates.decay_one_dimensional,
        rules=tuple(kept(rule, spec.base_lr, base_lr) for rule in spec.rules if not own_rate(rule, named)),
    )


def own_rate(rule: ParameterRule, named: Collection[str]) -> bool:
    """Whether a rule is the published optimiser's rate of biases, which was not asked for."""
    return rule.one_dimensional and "bias_lr" not in named


def kept(rule: ParameterRule, before: float, base_lr: float) -> ParameterRule:
    """Return a rule for another base rate: a rate of biases stays what it is."""
    return replace(rule, lr_scale=rule.lr_scale * before / base_lr) if rule.one_dimensional and base_lr else rule


def exporting(recipe: Recipe, *, export: Literal["published", "student", "teacher"] = "published") -> Recipe:
    """Return the recipe with the branch that was asked for exported.

    Args:
        recipe: Of a method with a teacher.
        export: Branch whose weights are handed back: the student, the teacher (its moving average), or the one that the
            method's published code takes.
    """
    return recipe if export == "published" else replace(recipe, export=export)
