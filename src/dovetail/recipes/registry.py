"""The table of base methods: those of this package, of installed packages, and registered in Python.

An external method is a function that takes a model's taps and keyword options and returns a `Recipe`. Add it with

* `register_method("mine", function)`, or the function (or a finished recipe) itself as `pretrain(method=...)`;
* its path on the command line, `--method package.module:function`;
* an entry point of the group `dovetail.methods` of an installed package.

Its name can be composed like those of this package: `decon-sl-mine`, `mine+decon-sl`.
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
from dovetail.sizes import Size

if TYPE_CHECKING:
    from dovetail.recipe import Recipe

GROUP = "dovetail.methods"
OWN = "own:"
"""Prefix for a method passed in Python whose name clashes with a method of this package."""

Family = Literal["dense", "image", "tokens"]


@dataclass(frozen=True)
class Method:
    """A base method: the function that builds its recipe, and its description.

    Attributes:
        module: For a method of this package, the module whose `METHODS` contains the function.
        family: "dense" compares cells of maps, "image" whole images, "tokens" a ViT's tokens.
        title: Display name.
        paper: Publication.
        year: Year of publication; 0 if unknown.
        needs: Requirement on the model.
        golden: Whether the method is tested against values of the official code.
        teacher: Whether the method has a teacher (a moving average of the student).
        make: For an external method, the function that takes the taps and keyword options.
        finished: Whether `make` returns a finished recipe without options.
        image_size: Size of the largest views of a finished recipe, in pixels.
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
    image_size: Size | None = None

    def source(self, name: str) -> str | Callable[..., Recipe]:
        """Return the path of the recipe function, as "dovetail.recipes.slots:slotcon", or the external function."""
        return f"{self.module}:{name}" if self.make is None else self.make


METHODS: dict[str, Method] = {
    "slotcon": Method("dovetail.recipes.slots", "dense", "SlotCon", "arXiv 2205.15288", 2022),
    "densecl": Method("dovetail.recipes.dense", "dense", "DenseCL", "arXiv 2011.09157", 2021),
    "pixpro": Method("dovetail.recipes.dense", "dense", "PixPro", "arXiv 2011.10043", 2021),
    "detcon": Method(
        "dovetail.recipes.segments", "dense", "DetCon", "arXiv 2103.10957", 2021, "any encoder, and masks", golden=False
    ),
    "simclr": Method("dovetail.recipes.image", "image", "SimCLR", "arXiv 2002.05709", 2020, teacher=False),
    "moco-v2": Method("dovetail.recipes.image", "image", "MoCo v2", "arXiv 2003.04297", 2020),
    "moco-v3": Method("dovetail.recipes.image", "image", "MoCo v3", "arXiv 2104.02057", 2021),
    "byol": Method("dovetail.recipes.image", "image", "BYOL", "arXiv 2006.07733", 2020),
    "simsiam": Method("dovetail.recipes.image", "image", "SimSiam", "arXiv 2011.10566", 2021, teacher=False),
    "barlow": Method("dovetail.recipes.image", "image", "Barlow Twins", "arXiv 2103.03230", 2021, teacher=False),
    "zerocl": Method("dovetail.recipes.image", "image", "ZeroCL", "ICLR 2022", 2022, teacher=False),
    "vicreg": Method("dovetail.recipes.image", "image", "VICReg", "arXiv 2105.04906", 2022, teacher=False),
    "dino": Method("dovetail.recipes.tokens", "tokens", "DINO", "arXiv 2104.14294", 2021),
    "ibot": Method("dovetail.recipes.tokens", "tokens", "iBOT", "arXiv 2111.07832", 2022, "a ViT"),
    "selfpatch": Method("dovetail.recipes.tokens", "tokens", "SelfPatch", "arXiv 2206.07990", 2022, "a ViT"),
    "pqcl": Method("dovetail.recipes.query_context", "tokens", "PQCL", "ICML 2023", 2023, "a ViT", golden=False),
    "encoder-targets": Method(
        "dovetail.recipes.feature_targets", "dense", "Encoder targets", "this project", 2026, "a decoder", golden=False
    ),
}

ALONE = ("encoder-targets",)
"""Methods that cannot be composed with others."""

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
    """Register a method, which can then be used by its name like the methods of this package.

    Args:
        name: Name with letters, digits, "-", "_" and ".". Registering the same name again replaces the method.
        function: Function that takes the model's taps (`Mapping[str, Tap]`) and keyword-only options with types and
            defaults, and returns a `Recipe`. The `Args` section of its docstring provides the help texts.
        family: "dense" compares cells of maps, "image" whole images, "tokens" a ViT's tokens. A "tokens" method cannot
            be repeated on a decoder.
        title: Display name of the method.
        paper: Publication.
        year: Year of publication.
        needs: Requirement on the model, for the table of `dovetail methods`.
        teacher: Whether the recipe has a teacher, which can then be exported.

    Raises:
        OptionsError: If the name belongs to a method of this package or could be read as a composition.
    """
    add(name, Method("", family, title or name, paper, year, needs, golden=False, teacher=teacher, make=function))


def add(name: str, method: Method) -> None:
    """Add an external method to the table.

    Raises:
        OptionsError: If its name or its options are not valid.
    """
    if name in BUILT_IN:
        raise OptionsError(f"dovetail already has a method {name!r}; use another name.")
    if not re.fullmatch(r"\w[\w.-]*|" + PATH, name) or name.startswith(("decon-", "adclr")):
        raise OptionsError(
            f"{name!r} is not a valid name for a method; use letters, digits, '-', '_' and '.', and do not start it "
            "with 'decon-' or 'adclr'."
        )
    assert method.make is not None
    for parameter in list(inspect.signature(method.make).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or parameter.default is parameter.empty:
            raise OptionsError(
                f"The parameter {parameter.name!r} of the method {name!r} cannot be an option; make it a keyword "
                "argument with a default."
            )
    METHODS[name] = method


@functools.cache
def installed() -> Mapping[str, EntryPoint]:
    """Return the entry points of methods in installed packages by name, without loading them."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def find(name: str) -> Method | None:
    """Return the method with a name, loading it from an installed package if necessary; None if there is none.

    Raises:
        OptionsError: The package cannot be loaded, or its method is invalid.
    """
    if name not in METHODS and name in installed():
        add(name, as_method(loaded(installed()[name]), name))
    return METHODS.get(name)


def loaded(entry: EntryPoint) -> Any:
    """Return the object of an entry point."""
    try:
        return entry.load()
    except Exception as error:  # code of another package
        package = "" if entry.dist is None else f" of the installed package {entry.dist.name}"
        raise OptionsError(
            f"The method {entry.name!r}{package} cannot be loaded from {entry.value} ({type(error).__name__}: "
            f"{error}); update the package or uninstall it."
        ) from error


def as_method(thing: Any, name: str) -> Method:
    """Return a function, a finished recipe or a `Method` as an external method.

    Raises:
        OptionsError: For any other object.
    """
    from dovetail.recipe import Recipe  # imported here so that help and errors need no torch

    if isinstance(thing, Method):
        return thing
    if isinstance(thing, Recipe):
        plain = Method("", "image", thing.name, "", 0, golden=False, teacher=thing.teacher_momentum is not None)
        size = max(thing.views.views, key=lambda view: view.pixels).size_px
        return replace(plain, make=lambda taps: thing, finished=True, image_size=size)
    if not callable(thing):
        raise OptionsError(
            f"The method {name} is a {type(thing).__name__}; pass a name, a Recipe, or a function of the model's taps."
        )
    return Method("", "image", name, "", 0, golden=False, make=thing)


def name_of(method: Any) -> str:
    """Return the name of a method that the user passed, and add the method to the table.

    Args:
        method: A name, which may contain "package.module:function", a `Recipe`, or a function
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
    """Add the function at "package.module:function" to the table under its path."""
    if path not in METHODS and not path.startswith(OWN):
        add(path, as_method(import_path(path, "method"), path))


def refuse_unnamed(name: str) -> None:
    """Raise `OptionsError` for a function path that the user did not pass: a file must not choose code to run."""
    for path in re.findall(PATH, name):
        if path not in METHODS:
            raise OptionsError(
                f"The method {path} is Python code, which a file cannot choose; pass it with --method or in Python."
            )
