"""The one table of base methods: those of this package, those that installed packages bring, those given in Python.

A method from outside is a function that takes a model's taps and keyword options and returns a `Recipe`. It comes in by

* `register_method("mine", function)`, or the function (or a finished recipe) itself as `pretrain(method=...)`;
* its path on the command line, `--method package.module:function`;
* an entry point of the group `dovetail.methods` of an installed package.

Whichever it is, its name is composed as those of this package are: `decon-sl-mine`, `mine+decon-sl`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal

from dovetail.errors import OptionsError
from dovetail.importing import PATH, import_path

if TYPE_CHECKING:
    from dovetail.recipe import Recipe

GROUP = "dovetail.methods"
OWN = "own:"
"""Stands before the name of what was given in Python and is called like a method of this package."""

Family = Literal["dense", "image", "tokens"]


@dataclass(frozen=True)
class Method:
    """A base method: the function that makes its recipe, and what there is to know about it.

    Attributes:
        module: Of a method of this package: the module whose `METHODS` has the function.
        family: What it compares: cells of maps, whole images, or a ViT's tokens.
        title: Its name in words.
        paper: Where it was published.
        year: When; 0 where that is not known.
        needs: What it asks of a model.
        golden: Whether numbers of the official code cover it.
        teacher: Whether a moving average of the student is kept beside it.
        make: Of a method from outside: the function, which takes the taps and keyword options.
        finished: Whether `make` returns one finished recipe, which has no options of its own.
        image_size: Side of a finished recipe's largest views, in pixels.
    """

    module: str
    family: Family
    title: str
    paper: str
    year: int
    needs: str = "any encoder"
    golden: bool = True
    teacher: bool = True
    make: Callable[..., Recipe] | None = None
    finished: bool = False
    image_size: int | None = None

    def source(self, name: str) -> str | Callable[..., Recipe]:
        """Return where the recipe function is, as "dovetail.recipes.slots:slotcon"; from outside, the function."""
        return f"{self.module}:{name}" if self.make is None else self.make


METHODS: dict[str, Method] = {
    "slotcon": Method("dovetail.recipes.slots", "dense", "SlotCon", "arXiv 2205.15288", 2022),
    "densecl": Method("dovetail.recipes.dense", "dense", "DenseCL", "arXiv 2011.09157", 2021),
    "pixpro": Method("dovetail.recipes.dense", "dense", "PixPro", "arXiv 2011.10043", 2021),
    "simclr": Method("dovetail.recipes.image", "image", "SimCLR", "arXiv 2002.05709", 2020, teacher=False),
    "moco-v2": Method("dovetail.recipes.image", "image", "MoCo v2", "arXiv 2003.04297", 2020),
    "moco-v3": Method("dovetail.recipes.image", "image", "MoCo v3", "arXiv 2104.02057", 2021),
    "byol": Method("dovetail.recipes.image", "image", "BYOL", "arXiv 2006.07733", 2020),
    "simsiam": Method("dovetail.recipes.image", "image", "SimSiam", "arXiv 2011.10566", 2021, teacher=False),
    "barlow": Method("dovetail.recipes.image", "image", "Barlow Twins", "arXiv 2103.03230", 2021, teacher=False),
    "zerocl": Method("dovetail.recipes.image", "image", "ZeroCL", "ICLR 2022", 2022, teacher=False),
    "vicreg": Method("dovetail.recipes.image", "image", "VICReg", "arXiv 2105.04906", 2022, teacher=False),
    "dino": Method("dovetail.recipes.tokens", "tokens", "DINO", "arXiv 2104.14294", 2021, "a ViT"),
    "ibot": Method("dovetail.recipes.tokens", "tokens", "iBOT", "arXiv 2111.07832", 2022, "a ViT"),
    "selfpatch": Method("dovetail.recipes.tokens", "tokens", "SelfPatch", "arXiv 2206.07990", 2022, "a ViT"),
    "pqcl": Method("dovetail.recipes.query_context", "tokens", "PQCL", "ICML 2023", 2023, "a ViT", golden=False),
    "encoder-targets": Method(
        "dovetail.recipes.targets", "dense", "Encoder targets", "this project", 2026, "a decoder", golden=False
    ),
}

ALONE = ("encoder-targets",)
"""Methods that are not composed with others."""

BUILT_IN = tuple(METHODS)


def register_method(
    name: str,
    function: Callable[..., Recipe],
    *,
    family: Family = "image",
    title: str = "",
    paper: str = "",
    year: int = 0,
    needs: str = "any encoder",
    teacher: bool = True,
) -> None:
    """Add a method to the table under a name, which then works wherever a method's name does.

    Args:
        name: Letters, digits, "-", "_" and "."; a second call with it takes the first one's place.
        function: Takes the model's taps (`Mapping[str, Tap]`) and keyword-only options with types and defaults, and
            returns a `Recipe`. The options' texts are read from the `Args` of its docstring.
        family: "dense" compares cells of maps, "image" whole images, "tokens" a ViT's tokens; the last is not
            repeated on a decoder.
        title: The method's name in words.
        paper: Where it was published.
        year: When.
        needs: What it asks of a model, for the table of `dovetail methods`.
        teacher: Whether its recipe keeps a moving average of the student, which then can be exported.

    Raises:
        OptionsError: For a name that this package has, or that could be read as a composition.
    """
    add(name, Method("", family, title or name, paper, year, needs, golden=False, teacher=teacher, make=function))


def add(name: str, method: Method) -> None:
    """Put a method from outside into the table, once its name and its options are such that it can be called.

    Raises:
        OptionsError: They are not.
    """
    if name in BUILT_IN:
        raise OptionsError(f"There is a method {name!r} in dovetail already; use another name for yours.")
    if not re.fullmatch(r"\w[\w.-]*|" + PATH, name) or name.startswith(("decon-", "adclr")):
        raise OptionsError(
            f"{name!r} is no name for a method; use letters, digits, '-', '_' and '.', and neither 'decon-' nor "
            "'adclr' at its beginning."
        )
    assert method.make is not None
    for parameter in list(inspect.signature(method.make).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or parameter.default is parameter.empty:
            raise OptionsError(
                f"The parameter {parameter.name!r} of the method {name!r} cannot be an option; give it a name and a "
                "default."
            )
    METHODS[name] = method


@functools.cache
def installed() -> Mapping[str, EntryPoint]:
    """Return the methods of installed packages, not loaded, by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def find(name: str) -> Method | None:
    """Return the method of a name, loading it from an installed package where it is one of theirs; None without one."""
    if name not in METHODS and name in installed():
        add(name, as_method(installed()[name].load(), name))
    return METHODS.get(name)


def as_method(thing: Any, name: str) -> Method:
    """Return a function, a finished recipe or a `Method` as a method from outside.

    Raises:
        OptionsError: For anything else.
    """
    from dovetail.recipe import Recipe  # here, so that help and refusals need no torch

    if isinstance(thing, Method):
        return thing
    if isinstance(thing, Recipe):
        plain = Method("", "image", thing.name, "", 0, golden=False, teacher=thing.teacher_momentum is not None)
        size = max(view.size_px for view in thing.views.views)
        return replace(plain, make=lambda taps: thing, finished=True, image_size=size)
    if not callable(thing):
        raise OptionsError(
            f"The method {name} is a {type(thing).__name__}; give a name, a Recipe, or a function of the model's taps."
        )
    return Method("", "image", name, "", 0, golden=False, make=thing)


def name_of(method: Any) -> str:
    """Return the name of a method that a person gave; what it names is then in the table.

    Args:
        method: A name, which may have "package.module:function" in it, a `Recipe`, or a function
            `(taps, **options) -> Recipe`.
    """
    if isinstance(method, str):
        for path in re.findall(PATH, method):
            import_method(path)
        return method
    from dovetail.recipe import Recipe  # as above

    called = method.name if isinstance(method, Recipe) else getattr(method, "__name__", type(method).__name__)
    if called in BUILT_IN or not re.fullmatch(r"[\w.]+", called):
        called = OWN + re.sub(r"\W", "_", called)
    add(called, as_method(method, called))
    return str(called)


def import_method(path: str) -> None:
    """Put the function at "package.module:function" into the table under its path."""
    if path not in METHODS and not path.startswith(OWN):
        add(path, as_method(import_path(path, "method"), path))


def refuse_unnamed(name: str) -> None:
    """Raise `OptionsError` for the path of a function that no person has named: a file may not choose code to run."""
    for path in re.findall(PATH, name):
        if path not in METHODS:
            raise OptionsError(
                f"The method {path} is Python code, which a file may not choose; name it with --method, or give it in "
                "Python."
            )
