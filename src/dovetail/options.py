"""Typed options: one frozen dataclass for each verb, in which an option is one field.

A field has its type, its default, its text, its range, and whether a resumed run may change it. The command line,
config files, the Python signature, the docs and the rules of resuming are all made from the fields:

    @dataclass(frozen=True, kw_only=True)
    class EmbedOptions(Options):
        run: str | Path = option("", "Folder of a pre-training run.")
        k: int = option(20, "Number of neighbours.", Range(1))

    @takes(EmbedOptions)
    def embed(options: EmbedOptions) -> Path:
        '''Write one vector for each image.'''

    embed(run="runs/wheat", k=5)

This module imports nothing heavy, so that help and refusals come at once.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, ParamSpec, Self, TypeVar, get_args

from dovetail.errors import OptionsError, unknown_name
from dovetail.names import names_of, types_of

INFO = "option"
AUTO = "auto"

Auto = Literal["auto"]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` on, that included unless `above`, to `high`, included.

    `most` bounds what has no natural limit, so that no memory is taken for what nobody means.
    """

    low: float
    high: float = math.inf
    above: bool = False
    most: float = 2**63 - 1

    def holds(self, value: float) -> bool:
        """Whether a number is in the range; NaN and infinity are in none."""
        high = min(self.high, self.most)
        return math.isfinite(value) and self.low <= value <= high and not (self.above and value == self.low)

    def __str__(self) -> str:
        if self.above:
            return f"above {self.low:g}" + (f" and at most {self.high:g}" if self.high < math.inf else "")
        return f"at least {self.low:g}" if self.high == math.inf else f"from {self.low:g} to {self.high:g}"

    def check(self, name: str, value: float) -> None:
        """Raise `OptionsError` for a number that the range does not hold."""
        if not self.holds(value):
            must = f"at most {self.most:g}" if self.most < value < math.inf else str(self)
            raise OptionsError(f"{name} is {value:g}; it must be {must}.")


MOST_SIDE_PX = 1 << 14
MOST_PICTURES = 200  # rows or columns of a sheet, whose pixels have a limit
COUNT = Range(1, most=1 << 40)
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1, above=True)


@dataclass(frozen=True)
class OptionInfo:
    """What a field says beside its type and default.

    Attributes:
        help: Text for users.
        range: Numbers that it may be, and each of its numbers where it takes several; None for any.
        movable: Whether a resumed run may have another value than it began with.
        required: Whether a call must give it; its default stands for nothing.
        python: Whether only Python can give it, as it is an object; no command line, file or run has it.
    """

    help: str
    range: Range | None = None
    movable: bool = False
    required: bool = False
    python: bool = False


def option(
    default: Any,
    help: str,
    range: Range | None = None,
    *,
    movable: bool = False,
    positional: bool = False,
    required: bool = False,
    python: bool = False,
) -> Any:
    """Return a field of an `Options` class; see `OptionInfo`. A `positional` one may be given without its name."""
    info = OptionInfo(help, range, movable, required, python)
    return dataclasses.field(default=default, kw_only=not positional, metadata={INFO: info})


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a verb.

    Raises:
        OptionsError: For a number outside its field's range, or a name that the field's type does not list.
    """

    _named: ClassVar[frozenset[str]] = frozenset()
    _from_file: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        kinds = types_of(type(self))
        for name, info in option_infos(type(self)).items():
            check_value(name, getattr(self, name), info, kinds[name])

    @classmethod
    def given(cls, values: Mapping[str, Any], *, from_file: Collection[str] = ()) -> Self:
        """Return options of which it is known which were named, and which of them only a config file named.

        Raises:
            OptionsError: For an unknown name and a required one that is missing, too.
        """
        infos = option_infos(cls)
        for name in values:
            if name not in infos:
                raise unknown_name("option", name, infos)
        for name, info in infos.items():
            if info.required and name not in values:
                raise OptionsError(f"{name} is missing; give it with --{name.replace('_', '-')}.")
        return cls(**values)._remembering(values, from_file)

    @property
    def named(self) -> frozenset[str]:
        """The options that the caller gave, whether or not they equal the default."""
        return self._named

    @property
    def from_file(self) -> frozenset[str]:
        """Those of them that a config file gave, and not the command line or Python."""
        return self._from_file

    def typed(self, name: str) -> bool:
        """Whether an option's value did not come from a config file."""
        return name not in self._from_file

    def changed(self, **values: Any) -> Self:
        """Return the options with other values; what was named and where it came from stays known."""
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
        """Return the options that only Python can give."""
        return frozenset(name for name, info in option_infos(cls).items() if info.python)

    @classmethod
    def default_of(cls, name: str) -> Any:
        """Return an option's default."""
        return next(field.default for field in fields(cls) if field.name == name)

    def _remembering(self, named: Collection[str], from_file: Collection[str]) -> Self:
        object.__setattr__(self, "_named", frozenset(named))
        object.__setattr__(self, "_from_file", frozenset(from_file))
        return self


def option_infos(options: type[Options]) -> Mapping[str, OptionInfo]:
    """Return what the fields of a class say, by name."""
    return {field.name: field.metadata[INFO] for field in fields(options) if INFO in field.metadata}


def check_value(name: str, value: Any, info: OptionInfo, kind: Any) -> None:
    """Raise `OptionsError` for a number out of range, or text where the type lists names and not this one."""
    several = value if isinstance(value, list | tuple) else [value]
    for one in several:
        if info.range is not None and isinstance(one, int | float):
            info.range.check(name, one)
    names = names_of(kind)
    if isinstance(value, str) and names and value not in names:
        numbers = any(one in (int, float) for one in (get_args(kind) or (kind,)))
        if numbers:
            raise OptionsError(f"{name} is {value!r}; it must be a number{or_names(names)}.")
        raise unknown_name(name, value, names)


def or_names(names: Collection[str]) -> str:
    """Return names as the last part of a list of what may be given."""
    return f" or {', '.join(map(repr, names))}" if names else ""


P = ParamSpec("P")
OptionsT = TypeVar("OptionsT", bound=Options)
R = TypeVar("R")


def takes(options: Callable[P, OptionsT]) -> Callable[[Callable[[OptionsT], R]], Callable[P, R]]:
    """Turn a function of one `Options` object into one of keyword arguments: those that the class has.

    The signature and the docstring's list of arguments come from the class. `options_class` returns it, and `body` the
    function of one object.
    """
    kind: Any = options
    assert issubclass(kind, Options)

    def decorate(function: Callable[[OptionsT], R]) -> Callable[P, R]:
        signature = signature_of(function, kind)

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            return function(kind.given(bound.arguments))

        called.__doc__ = documented(inspect.getdoc(function) or "", kind)
        vars(called).update(__signature__=signature, options=kind, body=function)
        return called

    return decorate


def options_class(function: Callable[..., Any]) -> type[Options]:
    """Return the class of a function that `takes` made."""
    found: type[Options] = vars(function)["options"]
    return found


def body(function: Callable[..., R]) -> Callable[[Any], R]:
    """Return what `takes` wraps: the function of one `Options` object."""
    found: Callable[[Any], R] = vars(function)["body"]
    return found


def signature_of(function: Callable[..., Any], options: type[Options]) -> inspect.Signature:
    """Return the signature with the options as keyword arguments."""
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
    """Return a docstring with the options' texts as its `Args`, before any other section."""
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
    """Return the options that may be given without their names."""
    return tuple(field.name for field in fields(options) if not field.kw_only)
