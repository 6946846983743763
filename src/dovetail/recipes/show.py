"""What there is, in words: methods, models, and a method's recipe spelled out."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from typing import Any

from dovetail.options import MOST_SIDE_PX, Options, Range, option, takes
from dovetail.recipes.spelling import refuse_other_spellings


@dataclass(frozen=True, kw_only=True)
class ShowOptions(Options):
    """Options of `dovetail show`."""

    method: Any = option(
        "decon-sl",
        "Name of the method, such as decon-sl, decon-ml-densecl, slotcon, or package.module:function.",
        positional=True,
    )
    model: str | None = option(
        None,
        "Model to show it for, with shapes and numbers of parameters. Default: a ResNet-50 with an FPN, or a ViT for "
        "methods on tokens.",
    )
    image_size: int | None = option(
        None, "Side of the global views in pixels; the recipe's unless given.", Range(8, most=MOST_SIDE_PX)
    )
    recipe: dict[str, Any] | None = option(None, "Options of the method's recipe.")


@takes(ShowOptions)
def show(options: ShowOptions) -> None:
    """Print a method's expanded recipe: terms, taps, heads, weights, views, schedules, optimiser."""
    from dovetail.networks.build import build_network
    from dovetail.networks.parts import is_layer_normed
    from dovetail.recipes.registry import METHODS
    from dovetail.recipes.registry import name_of as method_named
    from dovetail.recipes.table import build, parse, suited_optimiser

    options = options.changed(method=method_named(options.method))
    composition = parse(options.method)
    on_tokens = METHODS[composition.base].family == "tokens"
    name = options.model or ("timm/vit_small_patch16_224+fpn" if on_tokens else "timm/resnet50+fpn")
    network = build_network(name, image_size=options.image_size or 224)
    refuse_other_spellings(options, options.recipe)
    size = {} if options.image_size is None else {"image_size": options.image_size}
    chosen = size | dict(options.recipe or {})
    if "optimiser" not in chosen:  # as a run on this model takes it
        layer_normed = is_layer_normed(network)
        chosen["optimiser"] = suited_optimiser(options.method, network.taps, chosen, layer_normed=layer_normed)
    expanded = build(options.method, network.taps, chosen)
    console = wide_console()
    console.print(f"{options.method} on {name}", style="bold")
    for table in recipe_tables(expanded, network):
        console.print(table)


def wide_console(file: Any = None) -> Any:
    """Return a console as wide as the terminal, or wide enough for tables where there is none."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # the BrokenPipeError that is being handled: the command line answers it, as for all it prints

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
    """Return the tables of a recipe for a network: terms, their parts, views, and the rest."""
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
    details = Table("part", "of terms", title="Heads and objectives")
    for text, names in parts.items():
        details.add_row(text, ", ".join(names))
    return [terms, details, views_table(recipe), rest_table(recipe)]


def cells_of(term: Any) -> str:
    """Return how many cells of a map a term compares, and whether its head is recomputed."""
    chosen = term.cells
    cells = "all" if chosen.grid is None else f"at most {chosen.grid}x{chosen.grid}"
    cells = cells if chosen.points is None else f"{chosen.points} sampled"
    cells += f", without {chosen.border} at each edge" if chosen.border else ""
    return cells + (", head recomputed" if term.checkpoint_head else "")


def views_table(recipe: Any) -> Any:
    """Return the table of a recipe's views."""
    from rich.table import Table

    table = Table("view", "size", "area", "flip", "photometric", title="Views")
    for index, view in enumerate(recipe.views.views, 1):
        area = f"{view.scale[0]:g} to {view.scale[1]:g}"
        look = words(view.photometric)
        table.add_row(f"{index} {view.role}", f"{view.size_px} px", area, f"{view.flip_p:g}", look)
    return table


def rest_table(recipe: Any) -> Any:
    """Return the table of what a recipe says beside terms and views."""
    from rich.table import Table

    table = Table("what", "value", title="Recipe", show_header=False)
    for name, value in vars(recipe).items():
        if name not in ("terms", "views", "name") and value is not None:
            table.add_row(name, words(value))
    for name in ("min_overlap", "queries", "masks", "points", "mean", "std"):
        value = getattr(recipe.views, name)
        if value:
            table.add_row(name, words(value))
    return table


def name_of(spec: Any) -> str:
    """Return a spec's name without its ending."""
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
    """Print the table of methods: family, paper, year, what it needs, and whether golden numbers cover it."""
    from rich.table import Table

    from dovetail.recipes.registry import METHODS, find, installed
    from dovetail.recipes.table import examples

    for name in installed():
        find(name)
    table = Table("method", "title", "family", "paper", "year", "needs", "official numbers")
    for name, method in METHODS.items():
        covered = "matched" if method.golden else "none"
        table.add_row(name, method.title, method.family, method.paper, str(method.year or ""), method.needs, covered)
    console = wide_console()
    console.print(table)
    composed = ", ".join(name for name in examples() if name not in METHODS)
    console.print(f"Composed by rule: {composed}; METHOD+decon-sl[-BASE] puts BASE on the decoder.")


@dataclass(frozen=True, kw_only=True)
class ModelsOptions(Options):
    """Options of `dovetail models`."""

    pattern: str = option("*", 'Shell pattern that names must match, such as "smp/*/resnet50".', positional=True)


@takes(ModelsOptions)
def models(options: ModelsOptions) -> None:
    """Print the names of models that can be pre-trained."""
    from dovetail.networks.build import list_models

    print("\n".join(list_models(options.pattern)))
