"""Tables of methods, models, and the complete recipe of a method."""

from __future__ import annotations

import dataclasses
import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from dovetail.errors import DovetailError, OptionsError
from dovetail.options import AUTO, Options, option, takes
from dovetail.sizes import size_in_words


class ShownRecipe(Protocol):
    """Options that select the recipe to print."""

    @property
    def method(self) -> Any: ...
    @property
    def model(self) -> Any: ...
    @property
    def image_size(self) -> Any: ...
    @property
    def recipe(self) -> dict[str, Any] | None: ...


def standing_model(method: str) -> str:
    """Return the default model for printing a recipe: a ResNet-50, or a ViT for methods on tokens."""
    from dovetail.recipes.registry import METHODS
    from dovetail.recipes.table import parse

    on_tokens = method != AUTO and METHODS[parse(method).base].family == "tokens"
    return "timm/vit_small_patch16_224+fpn" if on_tokens else "timm/resnet50+fpn"


def tell_of_model(name: str) -> None:
    """Print which model is assumed, as no other one is specified."""
    print(f"Assuming the model {name}, because --model is not specified.")


def show_published(options: ShownRecipe) -> None:
    """Print a method's published recipe for a model."""
    from dovetail.networks.build import build_network
    from dovetail.networks.parts import is_layer_normed
    from dovetail.recipes.registry import name_of as method_named
    from dovetail.recipes.table import build, suited_optimiser

    method = method_named(options.method)
    name = options.model or standing_model(method)
    if not options.model:
        tell_of_model(name)
    network = build_network(name, image_size=options.image_size or 224)
    size = {} if options.image_size is None else {"image_size": options.image_size}
    chosen = size | dict(options.recipe or {})
    if "optimiser" not in chosen:  # the default of a run on this model
        layer_normed = is_layer_normed(network)
        chosen["optimiser"] = suited_optimiser(method, network.taps, chosen, layer_normed=layer_normed)
    expanded = build(method, network.taps, chosen)
    console = wide_console()
    console.print(f"{method} on {name}", style="bold")
    for table in recipe_tables(expanded, network):
        console.print(table)


def wide_console(file: Any = None) -> Any:
    """Return a console as wide as the terminal, or 120 columns wide without one."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # re-raise the BrokenPipeError; the command line handles it

    console = Plain(file=file, markup=False, emoji=False)
    return console if console.is_terminal else Plain(file=file, width=120, markup=False, emoji=False)


def recipe_lines(recipe: Any, network: Any) -> str:
    """Return a recipe's tables as plain text."""
    text = io.StringIO()
    console = wide_console(text)
    for table in recipe_tables(recipe, network):
        console.print(table)
    return text.getvalue().rstrip()


def recipe_tables(recipe: Any, network: Any) -> list[Any]:
    """Return the tables of a recipe for a network: terms, heads and objectives, views, and other settings."""
    from rich.table import Table

    terms = Table("term", "tap", "channels", "stride", "head", "objective", "weight", "cells", title="Terms")
    parts: dict[str, list[str]] = {}
    for term in recipe.terms:
        tap, head = network.taps[term.tap], recipe.head_of(term)
        parameters = sum(value.numel() for value in head.build(tap.channels).parameters())
        owner = f"that of {term.head.term}" if head is not term.head else f"{name_of(head)}, {parameters / 1e6:.1f} M"
        terms.add_row(
            *(term.name, term.tap, str(tap.channels), f"{tap.stride} px", owner, name_of(term.objective)),
            *(words(term.weight), cells_of(term)),
        )
        for part in (head, term.objective):
            parts.setdefault(words(part), []).append(term.name)
    details = Table("part", "used by", title="Heads and objectives")
    for text, names in parts.items():
        details.add_row(text, ", ".join(names))
    return [terms, details, views_table(recipe), rest_table(recipe)]


def cells_of(term: Any) -> str:
    """Return which cells of a map a term compares, and whether its head is recomputed."""
    chosen = term.cells
    cells = "all" if chosen.grid is None else f"at most {chosen.grid}x{chosen.grid}"
    cells = cells if chosen.points is None else f"{chosen.points} sampled"
    cells = cells if chosen.segments is None else f"means of {chosen.segments} segments"
    cells += f", without {chosen.border} at each edge" if chosen.border else ""
    return cells + (", head recomputed" if term.checkpoint_head else "")


def views_table(recipe: Any) -> Any:
    """Return the table of a recipe's views."""
    from rich.table import Table

    table = Table("view", "size", "area", "flip", "photometric", title="Views")
    for index, view in enumerate(recipe.views.views, 1):
        area = f"{view.scale[0]:g} to {view.scale[1]:g}"
        look = words(view.photometric)
        table.add_row(f"{index} {view.role}", f"{size_in_words(view.size_px)} px", area, f"{view.flip_p:g}", look)
    return table


def rest_table(recipe: Any) -> Any:
    """Return the table of a recipe's other settings."""
    from rich.table import Table

    table = Table("setting", "value", title="Recipe", show_header=False)
    for name, value in vars(recipe).items():
        if name not in ("terms", "views", "name") and value is not None:
            table.add_row(name, words(value))
    for name in ("min_overlap", "queries", "masks", "points", "segments", "side", "mean", "std"):
        value = getattr(recipe.views, name)
        if value:
            table.add_row(name, words(value))
    return table


def name_of(spec: Any) -> str:
    """Return the class name of a spec without "Spec"."""
    return type(spec).__name__.removesuffix("Spec")


def words(value: Any) -> str:
    """Return plain data as short text: `Name field=value field=value`."""
    if dataclasses.is_dataclass(value):
        fields = " ".join(f"{name}={words(part)}" for name, part in vars(value).items() if part not in ((), None))
        return f"{name_of(value)} {fields}".strip()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return "(" + ", ".join(words(part) for part in value) + ")"
    return str(value)


@dataclass(frozen=True, kw_only=True)
class MethodsOptions(Options):
    """Options of `dovetail methods`."""


@takes(MethodsOptions)
def methods(options: MethodsOptions) -> None:
    """Print the table of methods: family, paper, year, requirement, and whether official values cover it."""
    from rich.table import Table

    from dovetail.recipes.registry import METHODS, find, installed

    faults = []
    for name in installed():
        try:
            find(name)
        except DovetailError as error:  # the table has the others
            faults.append(str(error))
    table = Table("method", "title", "family", "paper", "year", "needs", "official numbers")
    for name, method in METHODS.items():
        covered = "matched" if method.golden else "none"
        table.add_row(name, method.title, method.family, method.paper, str(method.year or ""), method.needs, covered)
    console = wide_console()
    console.print(table)
    for fault in faults:
        console.print(fault, markup=False)
    for line in combinations():
        console.print(line)
    console.print(
        "Default (--method auto): encoder-targets for a decoder on a trained encoder, decon-sl for a decoder on a "
        "random one, densecl for a CNN without a decoder, dino for a ViT without one."
    )


def combinations() -> list[str]:
    """Return lines on the names that are composed of others, with every name that they take."""
    from dovetail.recipes.registry import ALONE, METHODS
    from dovetail.recipes.table import ADCLR_BASES

    bases = [name for name, method in METHODS.items() if method.family != "tokens" and name not in ALONE]
    return [
        "Combinations:",
        f"  decon-sl-BASE, decon-ml-BASE: BASE on the encoder and on one level or all levels of the decoder, such as "
        f"decon-ml-slotcon and decon-ml-densecl. BASE is {', '.join(bases)} or dino. decon-sl and decon-ml take "
        "slotcon.",
        f"  adclr-BASE: query crops on top of BASE, which is {' or '.join(ADCLR_BASES)}; adclr takes dino.",
        "  METHOD+decon-sl-BASE, METHOD+decon-ml-BASE: METHOD on the encoder and BASE on the decoder, such as "
        "dino+decon-sl-densecl. METHOD may be adclr-BASE, too.",
    ]


@dataclass(frozen=True, kw_only=True)
class ModelsOptions(Options):
    """Options of `dovetail models`."""

    pattern: str = option(
        "", 'Shell pattern that names must match, such as "smp/*/resnet50", or a part of them.', positional=True
    )
    library: Literal["any", "timm", "smp", "torchvision"] = option("any", "Library of the models.")
    decoder: bool = option(False, "List models with a decoder only.")
    all: bool = option(False, "List every name, also without a filter.")


def timm_encoders(pattern: str) -> list[str]:
    """Return the names of an architecture of smp with timm's encoders that match, such as "smp/fpn/*lite0*"."""
    from dovetail.networks.known import list_models

    library, _, rest = pattern.partition("/")
    architecture, _, encoder = rest.partition("/")
    if library != "smp" or not encoder or not list_models(f"smp/{architecture}/*") or "*" in architecture:
        return []
    matching = list_models(f"timm/{encoder.removeprefix('tu-')}")
    return [f"smp/{architecture}/tu-{name.removeprefix('timm/')}" for name in matching if "+" not in name]


@takes(ModelsOptions)
def models(options: ModelsOptions) -> None:
    """Print the names of supported models that match a filter, or a summary without one.

    Raises:
        OptionsError: If no name matches.
    """
    from dovetail.networks.known import list_models

    found = [
        name
        for name in list_models(options.pattern or "*")
        if options.library in ("any", name.partition("/")[0]) and (has_decoder(name) or not options.decoder)
    ]
    found = found or timm_encoders(options.pattern or "")
    if not found:
        close = difflib.get_close_matches(options.pattern, list_models("*"), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "see `dovetail models` for the libraries."
        raise OptionsError(f"No model matches {options.pattern or 'these filters'!r}; {hint}")
    filtered = options.pattern or options.decoder or options.library != "any"
    print("\n".join(found) if filtered or options.all else summary_of(found))


def has_decoder(name: str) -> bool:
    """Whether a model with this name has a decoder."""
    return "+" in name or not name.startswith("timm/")


def summary_of(names: Sequence[str]) -> str:
    """Return a summary of model names and their number."""
    encoders = sorted({name.split("/")[2] for name in names if name.startswith("smp/") and "/dpt/" not in name})
    architectures = sorted({name.split("/")[1] for name in names if name.startswith("smp/")})
    timm = [name for name in names if name.startswith("timm/") and "+" not in name]
    torchvision = [name for name in names if name.startswith("torchvision/")]
    return "\n".join(
        [
            f"timm/NAME                  {len(timm):,} encoders, such as timm/resnet50, timm/vit_small_patch16_224",
            "timm/NAME+fpn, +fcn        any of these with an FPN or FCN decoder",
            f"smp/ARCHITECTURE/ENCODER   {', '.join(architectures)} over {len(encoders)} encoders, such as "
            "smp/unet/resnet50",
            f"torchvision/NAME           {', '.join(name.partition('/')[2] for name in torchvision)}",
            "",
            "List names with `dovetail models PATTERN`, such as `dovetail models 'smp/unet/*'`, or with --library, "
            "--decoder or --all.",
        ]
    )
