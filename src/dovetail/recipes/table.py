"""The rule by which names of methods are composed.

    BASE                         slotcon, densecl, simclr, dino ...
    adclr-BASE                   query patches over dino or ibot
    decon-sl[-BASE]              one level of the decoder, over slotcon unless a base is named
    decon-ml[-BASE]              all levels, with dropout on the laterals
    METHOD+decon-sl[-BASE]       METHOD on the encoder, BASE (else slotcon) on the decoder; `+decon` is `+decon-sl`

The bases are in `dovetail.recipes.registry`. Options are keyword arguments of the functions that a name is composed of,
in one namespace.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dovetail.errors import OptionsError, unknown_name
from dovetail.recipes.listed import docstring_helps, function_at, listed, parameters_of, texts
from dovetail.recipes.registry import ALONE, BUILT_IN, METHODS, find, refuse_unnamed
from dovetail.recipes.values import check_value

if TYPE_CHECKING:
    from dovetail.recipe import Recipe, Tap

CHOSEN = ("decon-sl", "encoder-targets", "densecl", "dino")
"""Methods that a run which names none is given; `dovetail.run.choose` says which and when."""

ADCLR_BASES = ("dino", "ibot")

DECON_DEFAULTS: dict[str, dict[str, Any]] = {
    "sl": {"levels": "finest"},
    "ml": {"levels": "all", "lateral_dropout": 0.5},
}

ADCLR, DECON = "dovetail.recipes.query_terms:adclr", "dovetail.recipes.decoder_terms:decon"
TRAINING, EXPORTING = "dovetail.recipes.training:training", "dovetail.recipes.training:exporting"

# Options of a base that mean the whole run.
RUN_WIDE = {
    *("base_lr", "bias_lr", "weight_decay", "warmup_epochs", "momentum"),
    *("image_size", "min_scale", "blur_px", "jitter"),
}


LATER: Mapping[str, Any] = {"reference_timm_positions": True}
"""Options whose default changed what runs do, with the values that runs from before have. New runs save them."""


@dataclass(frozen=True)
class Composition:
    """A method's name taken apart.

    Attributes:
        base: Name of the base method on the encoder.
        adclr: Whether query patches are added to it.
        decon: None, "sl" or "ml".
        decoder: Name of the base method on the decoder, where it is another one.
    """

    base: str
    adclr: bool = False
    decon: str | None = None
    decoder: str | None = None


def parse(name: str) -> Composition:
    """Return what a method's name is composed of; raise `OptionsError` with the nearest name for a wrong one."""
    if name in METHODS:
        return Composition(name)
    encoder, plus, decoder = name.partition("+")
    if plus:
        for one in ALONE:
            if name.startswith(f"{one}+"):
                raise OptionsError(f"{one!r} trains the decoder by itself and is not composed; use --method {one}.")
        left, right = parse(encoder), parse(decoder + "-sl" if decoder == "decon" else decoder)
        if left.decon or right.decon is None or right.decoder:
            raise OptionsError(f"{name!r} is not METHOD+decon-sl[-BASE] or METHOD+decon-ml[-BASE].")
        return Composition(left.base, left.adclr, right.decon, right.base)
    for level in DECON_DEFAULTS:
        if name == f"decon-{level}" or name.startswith(f"decon-{level}-"):
            return Composition(known_base(name, name.removeprefix(f"decon-{level}")[1:] or "slotcon"), decon=level)
    if name == "adclr" or name.startswith("adclr-"):
        return Composition(known_base(name, name.removeprefix("adclr")[1:] or "dino"), adclr=True)
    return Composition(known_base(name, name))


def known_base(name: str, base: str) -> str:
    """Return `base` if the table has it."""
    refuse_unnamed(base)
    if find(base) is None:
        raise unknown_name("method", name, examples())
    if base in ALONE and name != base:
        raise OptionsError(f"{base!r} trains the decoder by itself and is not composed; use --method {base}.")
    return base


def examples() -> list[str]:
    """Return the names of all base methods and the usual compositions."""
    bases = [name for name in METHODS if name not in ("slotcon", *ALONE) and METHODS[name].family != "tokens"]
    composed = [f"decon-{level}" for level in DECON_DEFAULTS]
    composed += [f"decon-{level}-{name}" for level in DECON_DEFAULTS for name in bases]
    composed += [f"adclr-{name}" for name in ADCLR_BASES]
    return [*METHODS, *composed, "dino+decon-sl", "adclr+decon"]


@dataclass(frozen=True)
class Part:
    """A function that a composition calls: itself or where it is, and its options by their names in the composition."""

    source: str | Callable[..., Recipe]
    options: Mapping[str, inspect.Parameter]
    prefix: str = ""

    @property
    def function(self) -> Callable[..., Recipe]:
        """The function; one of this package is imported."""
        return function_at(self.source) if isinstance(self.source, str) else self.source

    @property
    def texts(self) -> Mapping[str, str]:
        """The text on each of the function's options, by the function's own names."""
        return texts(self.source) if isinstance(self.source, str) else docstring_helps(self.source)

    def __call__(self, *arguments: Any, given: Mapping[str, Any], **extra: Any) -> Recipe:
        """Call the function with those of the `given` options that are its own."""
        own = {name.removeprefix(self.prefix): value for name, value in given.items() if name in self.options}
        return self.function(*arguments, **extra, **own)


def part(source: str | Callable[..., Recipe], *, prefix: str = "", without: Collection[str] = ()) -> Part:
    """Return a function as a part, with its options' names behind `prefix`; one of this package is not imported."""
    own = listed(source) if isinstance(source, str) else parameters_of(source)
    return Part(source, {prefix + name: one for name, one in own.items() if name not in without}, prefix)


def places() -> list[str]:
    """Return where all functions of this package are that compositions call."""
    bases = [METHODS[name].source(name) for name in BUILT_IN]
    return [*(one for one in bases if isinstance(one, str)), ADCLR, DECON, TRAINING, EXPORTING]


def parts_of(composition: Composition) -> dict[str, Part]:
    """Return what a composition calls: "base" and "training", and "export", "adclr", "decon", "decoder" where there."""
    method, other = METHODS[composition.base], METHODS.get(composition.decoder or "")
    parts = {"export": part(EXPORTING)} if method.teacher or (other and other.teacher) else {}
    parts["base"] = part(method.source(composition.base))
    parts["training"] = part(TRAINING)
    if composition.adclr:
        parts["adclr"] = part(ADCLR)
    separate = composition.decoder is not None and composition.decoder != composition.base
    if composition.decon:
        # A method of the decoder's own brings the width of its heads itself.
        parts["decon"] = part(DECON, without={"decoder_hidden"} if separate else ())
    if composition.decoder and other and separate:
        # Both bases may have an option of one name; the decoder's stands behind a prefix.
        taken = {name.removeprefix("decoder_") for name in parts["decon"].options}
        common = RUN_WIDE if method.teacher else RUN_WIDE - {"momentum"}
        parts["decoder"] = part(other.source(composition.decoder), prefix="decoder_", without=common | taken)
    return parts


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """Return the options that a method takes, with their types and defaults."""
    composition = parse(name)
    options: dict[str, inspect.Parameter] = {}
    for one in parts_of(composition).values():
        options = {**one.options, **options}
    for option, default in defaults_of(composition).items():
        options[option] = options[option].replace(default=default)
    return options


def defaults_of(composition: Composition) -> dict[str, Any]:
    """Return the defaults of a composition where they differ from those of its functions."""
    kept = {"encoder_init": "published"} if METHODS[composition.base].finished else {}
    return kept | DECON_DEFAULTS.get(composition.decon or "", {})


def methods_with(option: str) -> str:
    """Return the first methods that take an option, listed: "slotcon, dino, ibot, …"; nothing where none does."""
    taking = [name for name in examples() if option in options_of(name)]
    return ", ".join(taking[:3]) + (", …" if len(taking) > 3 else "")


def build(name: str, taps: Mapping[str, Tap], options: Mapping[str, object] | None = None) -> Recipe:
    """Return the recipe of a method for a model with `taps`.

    Raises:
        DovetailError: For an unknown method or option, or one that does not fit the model.
    """
    composition, known = parse(name), options_of(name)
    parts = parts_of(composition)
    for option in options or {}:
        if option not in known and (others := methods_with(option)):
            raise OptionsError(f"There is no option of {name} {option!r}; it belongs to other methods: {others}.")
        if option not in known:
            raise unknown_name(f"option of {name}", option, known)
    for option, value in (options or {}).items():
        check_value(option, known[option], value)
    given = defaults_of(composition) | dict(options or {})
    recipe = parts["base"](taps, given=given)
    if "export" in parts:
        recipe = parts["export"](recipe, given=given)
    if "adclr" in parts:
        recipe = parts["adclr"](recipe, taps, given=given)
    if "decon" in parts:
        decoder = parts["decoder"](taps, given=given) if "decoder" in parts else None
        recipe = parts["decon"](recipe, taps, given=given, name=name, decoder=decoder)
    if given.get("export") == "teacher" and recipe.teacher_momentum is None:  # of a method from outside
        raise OptionsError(f"There is no option of {name} 'export', as it keeps no teacher; leave it out.")
    # A file at paper scale names the published values too, which suit the published optimiser alone.
    named = {option for option, value in given.items() if value != known[option].default}
    recipe = parts["training"](recipe, given=given, named=named)
    return replace(recipe, name=name)


def with_later_options(name: str, options: Mapping[str, Any], *, resume: bool) -> dict[str, Any]:
    """Return a run's options with those that came later: as runs from before have them when `resume`, else by default.

    Args:
        name: Of the method.
        options: That were given, or saved.
        resume: Whether they are those of a saved run.
    """
    known = options_of(name)
    later = {option: old if resume else known[option].default for option, old in LATER.items() if option in known}
    return {**later, **options}


def suited_optimiser(
    name: str, taps: Mapping[str, Tap], options: Mapping[str, Any] | None, *, layer_normed: bool
) -> Literal["published", "adamw"]:
    """Return the optimiser that a run takes where none is given.

    LARS is made for large batches on networks with BatchNorm; of those who publish with it, MoCo v3 and the authors of
    DeCon train ViTs and ConvNeXts with AdamW.

    Args:
        name: Of the method.
        taps: The model's taps.
        options: Of the recipe, as of `build`.
        layer_normed: Whether the encoder has LayerNorm and no BatchNorm.
    """
    lars = layer_normed and build(name, taps, options).optimiser.name == "lars"
    return "adamw" if lars else "published"
