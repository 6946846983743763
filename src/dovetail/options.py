"""Typed options: one frozen dataclass per command, with one field per option.

A field has a type, a default, a help text, a range, and a flag whether a resumed run may change it. The command line,
config files, Python signatures, docs and the rules for resuming are all generated from the fields:

    @dataclass(frozen=True, kw_only=True)
    class EmbedOptions(Options):
        run: str | Path = option("", "Folder of a pre-training run.")
        k: int = option(20, "Number of neighbours.", Range(1))

    @takes(EmbedOptions)
    def embed(options: EmbedOptions) -> Path:
        '''Write one feature vector per image.'''

    embed(run="runs/wheat", k=5)

This module imports no heavy modules, so help and error messages are fast.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, ClassVar, Literal, ParamSpec, Self, TypeVar, Union, get_args, get_origin

from dovetail.errors import OptionsError, unknown_name
from dovetail.names import names_of, types_of

INFO = "option"
AUTO = "auto"

Auto = Literal["auto"]


@dataclass(frozen=True)
class Range:
    """A range of numbers from `low` to `high`, both included, or excluding `low` if `above` is set.

    `most` bounds options without a natural limit, to catch typing errors before they allocate memory.
    """

    low: float
    high: float = math.inf
    above: bool = False
    most: float = 2**63 - 1

    def holds(self, value: float) -> bool:
        """Return whether a number is in the range. NaN and infinity never are."""
        high = min(self.high, self.most)
        return math.isfinite(value) and self.low <= value <= high and not (self.above and value == self.low)

    def __str__(self) -> str:
        if self.above:
            return f"above {self.low:g}" + (f" and at most {self.high:g}" if self.high < math.inf else "")
        return f"at least {self.low:g}" if self.high == math.inf else f"from {self.low:g} to {self.high:g}"

    def check(self, name: str, value: float) -> None:
        """Raise `OptionsError` if a number is outside the range."""
        if not self.holds(value):
            must = f"at most {self.most:g}" if self.most < value < math.inf else str(self)
            raise OptionsError(f"{name} is {value:g}; it must be {must}.")


MOST_SIDE_PX = 1 << 14
MOST_PICTURES = 200  # rows or columns of a sheet of images
COUNT = Range(1, most=1 << 40)
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1, above=True)


@dataclass(frozen=True)
class OptionInfo:
    """Metadata of an option, in addition to the type and default of its field.

    Attributes:
        help: Help text.
        range: Allowed numbers (of each element if the option is a sequence), or None for any.
        movable: Whether a resumed run may change the option.
        required: Whether the option must be specified. Its default is not used then.
        python: Whether the option is a Python object, which is not available on the command line and in files.
        existing: Whether the option is the path of a file or folder that must exist.
        words: Words that an `existing` option takes instead of a path.
        several: Whether several values may follow the option on the command line. They become a list, and one value
            stays itself.
        reads: Function of a value and the option's name that converts the value to the type of the field, for options
            with several spellings. It raises `OptionsError` for other values.
    """

    help: str
    range: Range | None = None
    movable: bool = False
    required: bool = False
    python: bool = False
    several: bool = False
    reads: Callable[[Any, str], Any] | None = None
    existing: bool = False
    words: tuple[str, ...] = ()


def option(
    default: Any,
    help: str,
    range: Range | None = None,
    *,
    movable: bool = False,
    positional: bool = False,
    required: bool = False,
    python: bool = False,
    several: bool = False,
    reads: Callable[[Any, str], Any] | None = None,
    existing: bool = False,
    words: tuple[str, ...] = (),
) -> Any:
    """Return a field of an `Options` class (see `OptionInfo`). A `positional` option may be passed without its name."""
    info = OptionInfo(help, range, movable, required, python, several, reads, existing, words)
    return dataclasses.field(default=default, kw_only=not positional, metadata={INFO: info})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base class of the options of a command.

    Raises:
        OptionsError: A number is out of range, or a name is not one of the choices.
    """

    _named: ClassVar[frozenset[str]] = frozenset()
    _from_file: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        kinds = types_of(type(self))
        for name, info in option_infos(type(self)).items():
            if info.reads is not None and getattr(self, name) is not None:
                object.__setattr__(self, name, info.reads(getattr(self, name), name))
            check_value(name, getattr(self, name), info, kinds[name])

    @classmethod
    def given(cls, values: Mapping[str, Any], *, from_file: Collection[str] = ()) -> Self:
        """Create options and remember which of them are specified, and which only in a config file.

        Raises:
            OptionsError: An option is unknown, missing, or has an invalid value.
        """
        infos = option_infos(cls)
        refuse_unknown_options(values, infos)
        for name, info in infos.items():
            if info.required and name not in values:
                raise OptionsError(f"{name} is missing; specify it with --{name.replace('_', '-')}.")
        return cls(**values)._remembering(values, from_file)

    @property
    def named(self) -> frozenset[str]:
        """Names of the options that the caller specified, even if they equal the default."""
        return self._named

    @property
    def from_file(self) -> frozenset[str]:
        """Names of the options that only a config file specified."""
        return self._from_file

    def typed(self, name: str) -> bool:
        """Return whether an option's value does not come from a config file."""
        return name not in self._from_file

    def changed(self, **values: Any) -> Self:
        """Return the options with other values. The record of specified options is kept."""
        return dataclasses.replace(self, **values)._remembering(self._named, self._from_file)

    def as_dict(self) -> dict[str, Any]:
        """Return the options by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def movable(cls) -> frozenset[str]:
        """Return the options that a resumed run may change."""
        return frozenset(name for name, info in option_infos(cls).items() if info.movable)

    @classmethod
    def given_in_python(cls) -> frozenset[str]:
        """Return the options that are only available in Python."""
        return frozenset(name for name, info in option_infos(cls).items() if info.python)

    @classmethod
    def default_of(cls, name: str) -> Any:
        """Return an option's default."""
        return next(field.default for field in fields(cls) if field.name == name)

    def _remembering(self, named: Collection[str], from_file: Collection[str]) -> Self:
        object.__setattr__(self, "_named", frozenset(named))
        object.__setattr__(self, "_from_file", frozenset(from_file))
        return self


def refuse_unknown_options(names: Iterable[str], known: Collection[str], *, kind: str = "option") -> None:
    """Raise `OptionsError` if a name is not one of the `known` options, with the one that was probably meant."""
    for name in names:
        if name not in known:
            meant = same_meaning(name, known)
            raise unknown_name(kind, name, known if meant is None else [meant])


# Names that other commands and libraries have for the same thing.
MEANINGS = (
    ("image_size", "crop_size", "img_size", "input_size", "imgsz", "resolution", "size"),
    ("max_steps", "steps", "iterations", "num_steps", "max_iter"),
    ("lr", "learning_rate", "base_lr"),
    ("batch_size", "batch", "global_batch_size"),
    ("workers", "num_workers"),
    ("accelerator", "device", "gpu", "gpus"),
    ("out", "output", "output_dir", "save_dir", "to"),
    ("data", "dataset", "data_dir", "images"),
    ("init", "pretrained", "weights"),
    ("seeds", "repetitions", "num_seeds"),
    ("classes", "num_classes"),
)


def same_meaning(name: str, known: Iterable[str]) -> str | None:
    """Return the option that has the meaning of an unknown one.

    >>> same_meaning("image_size", ["batch_size", "crop_size"])
    'crop_size'
    """
    choices = [*known]
    group = next((one for one in MEANINGS if name in one), ())
    return next((one for one in group if one in choices), None)


def option_infos(options: type[Options]) -> Mapping[str, OptionInfo]:
    """Return the metadata of all options of a class, by name."""
    return {field.name: field.metadata[INFO] for field in fields(options) if INFO in field.metadata}


def check_value(name: str, value: Any, info: OptionInfo, kind: Any) -> None:
    """Raise `OptionsError` if a number is out of range, or a name is not one of the choices of its type."""
    several = value if isinstance(value, list | tuple) else [value]
    for one in several:
        if info.range is not None and isinstance(one, int | float):
            info.range.check(name, one)
    names = names_of(kind)
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    numbers = [one for one in (int, float) if one in parts]
    whole = isinstance(value, float) and numbers == [int]
    if whole or (isinstance(value, str) and numbers and str not in parts and value not in names):
        raise OptionsError(f"{name} is {value!r}; it must be a {'whole ' * whole}number{or_names(names)}.")
    if isinstance(value, str) and names and value not in names:
        raise unknown_name(name, value, names)


def or_names(names: Collection[str]) -> str:
    """Return names as the last part of a list of choices."""
    return f" or {', '.join(map(repr, names))}" if names else ""


P = ParamSpec("P")
OptionsT = TypeVar("OptionsT", bound=Options)
R = TypeVar("R")


def takes(options: Callable[P, OptionsT]) -> Callable[[Callable[[OptionsT], R]], Callable[P, R]]:
    """Decorator that turns a function of one `Options` object into a function of keyword arguments.

    The signature and the `Args` section of the docstring are generated from the class. `options_class` returns the
    class, and `body` the undecorated function. The new function raises `OptionsError` for other arguments.
    """
    kind: Any = options
    assert issubclass(kind, Options)

    def decorate(function: Callable[[OptionsT], R]) -> Callable[P, R]:
        signature = signature_of(function, kind)

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(kind.given(bound_arguments(function.__name__, signature, args, kwargs)))

        called.__doc__ = documented(inspect.getdoc(function) or "", kind)
        vars(called).update(__signature__=signature, options=kind, body=function)
        return called

    return decorate


def bound_arguments(
    function: str, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the arguments of a call by name. Raise `OptionsError` if the function does not take them."""
    refuse_unknown_options(kwargs, signature.parameters, kind=f"{function} option")
    try:
        return signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise OptionsError(f"{function} got {error}; specify its options by name.") from None


def options_class(function: Callable[..., Any]) -> type[Options]:
    """Return the options class of a function decorated with `takes`."""
    found: type[Options] = vars(function)["options"]
    return found


def body(function: Callable[..., R]) -> Callable[[Any], R]:
    """Return the undecorated function, whose only argument is an `Options` object."""
    found: Callable[[Any], R] = vars(function)["body"]
    return found


def signature_of(function: Callable[..., Any], options: type[Options]) -> inspect.Signature:
    """Return a signature with the options as keyword arguments."""
    kinds = types_of(options)
    named, first = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter(
            field.name, named if field.kw_only else first, default=field.default, annotation=kinds[field.name]
        )
        for field in sorted(fields(options), key=lambda field: bool(field.kw_only))
    ]
    return inspect.Signature(parameters, return_annotation=inspect.signature(function).return_annotation)


def documented(text: str, options: type[Options]) -> str:
    """Insert the help texts of the options into a docstring as its `Args` section."""
    lines = ["Args:"]
    for name, info in option_infos(options).items():
        lines += textwrap.wrap(f"{name}: {info.help}", 116, initial_indent="    ", subsequent_indent="        ")
    head: list[str] = []
    sections: list[str] = []
    for paragraph in text.split("\n\n"):
        is_section = bool(sections) or paragraph.split("\n")[0].rstrip(":") in ("Returns", "Raises")
        (sections if is_section else head).append(paragraph)
    return "\n\n".join([*head, "\n".join(lines), *sections])


def positional_in(options: type[Options]) -> tuple[str, ...]:
    """Return the names of positional options."""
    return tuple(field.name for field in fields(options) if not field.kw_only)
