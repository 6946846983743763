"""Parses the command line and config files, based on the fields of an `Options` class."""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from argparse import SUPPRESS
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from dovetail.errors import DovetailError, OptionsError
from dovetail.files.options_file import read_options_file
from dovetail.names import types_of
from dovetail.options import AUTO, Options, option_infos, positional_in, same_meaning

OPTION = r"(?<![\w-])--[a-z][\w.-]*"


def make_parser(
    command: str,
    options: type[Options],
    arguments: list[str],
    *,
    description: str = "",
    config: Literal["read", "named", "none"] = "none",
) -> Any:
    """Return the parser of a command, with the options of the method's recipe as `--recipe.NAME`.

    Args:
        command: Name of the command.
        options: Options class of the command.
        arguments: Command line, which determines the method.
        description: Text above the list of options in the help.
        config: "read" reads the file of --config. "named" accepts --config without reading the file, so the result
            only has options that were typed. "none" has no --config.
    """
    kind: Any = options  # mypy does not take classes for hashable
    if "recipe" not in types_of(options):
        return _built(command, kind, None, description, config)
    from dovetail.recipes.registry import METHODS, name_of

    positional = positional_values(positional_in(options), arguments)
    typed = name_of(positional["method"]) if "method" in positional and not is_run(positional["method"]) else None
    method = typed or method_in(arguments, options.default_of("method"))
    changing = any(one.make is not None for one in METHODS.values())  # another function may take over an external name
    build = _built.__wrapped__ if changing else _built
    return build(command, kind, method, description, config)


@functools.lru_cache(maxsize=32)
def _built(command: str, options: type[Options], method: str | None, description: str, config: str) -> Any:
    """Return the parser for a method's recipe; building it takes longer than parsing with it."""
    import jsonargparse

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise OptionsError(explain(message, known_options(self)))

        def format_help(self, formatter: Any = None) -> str:
            # Those of all methods that may be chosen would hide the other options.
            hidden = [one for one in self._actions if self.epilog and one.dest.startswith("recipe.")]
            with without_help(hidden):
                return re.sub(OPTION, lambda match: hyphened(match.group()), super().format_help(formatter))

    kinds, positional = types_of(options), positional_in(options)
    usage = " ".join([f"dovetail {command}", *(f"[{name}]" for name in positional), "[options]"])
    # An abbreviation would mean another option as soon as one is added.
    parser = Parser(prog=f"dovetail {command}", usage=usage, description=description, allow_abbrev=False)
    if config != "none":
        action = "config" if config == "read" else "append"
        parser.add_argument("--config", action=action, help="YAML file with any of these options.")
    for option, info in option_infos(options).items():
        if option != "recipe" and not info.python:
            how = how_parsed(kinds[option], options.default_of(option), positional=option in positional)
            how |= {"type": OneOrSeveral()} if info.several else {}
            how |= {"type": Spelled(info.reads, option)} if info.reads else {}
            parser.add_argument(option if option in positional else f"--{option}", help=info.help, **how)
    if method is not None:
        add_recipe_options(parser, method)
        parser.epilog = about_recipes("show --help" if positional else "pretrain --help --method") * (method == AUTO)
    return parser


def about_recipes(command: str) -> str:
    """Return which help lists the options of recipes."""
    return f"Options of recipes are written --recipe.NAME VALUE; `dovetail {command} METHOD` lists a method's."


@contextmanager
def without_help(actions: Sequence[Any]) -> Iterator[None]:
    """Leave options out of the help that is made in the block."""
    texts = [one.help for one in actions]
    for one in actions:
        one.help = SUPPRESS
    try:
        yield
    finally:
        for one, text in zip(actions, texts, strict=True):
            one.help = text


def how_parsed(kind: Any, default: Any, *, positional: bool) -> dict[str, Any]:
    """Return the arguments of `add_argument` for an option of this type."""
    if kind is bool:  # one that is on by default is switched off by its value
        return {"type": bool, "default": True} if default else {"action": "store_true"}
    kind = str if kind is Any else kind  # modules, datasets and functions are specified by name
    if get_origin(kind) is Sequence:
        one = str if get_args(kind)[0] is Any else get_args(kind)[0]
        return {"type": one, "nargs": "*" if positional else "+", "default": list(default)}
    return {"type": str, "nargs": "?", "default": default} if positional else {"type": kind, "default": default}


SEPARATOR = "\0"  # no argument of a command contains it


def joined(arguments: Sequence[str], options: type[Options]) -> list[str]:
    """Join the values that follow an option with `several` values to one argument (see `OneOrSeveral`)."""
    several = {f"--{name}" for name, info in option_infos(options).items() if info.several}
    found: list[str] = []
    inside = 0
    for argument in arguments:
        inside = inside + 1 if inside and not argument.startswith("-") else int(argument in several)
        if inside > 2:
            found[-1] += SEPARATOR + argument
        else:
            found.append(argument)
    return found


class OneOrSeveral:
    """Type of options that take one value or several."""

    def __repr__(self) -> str:
        return "str | list[str]"

    def __call__(self, value: Any) -> str | list[str]:
        """Return one value as a string, and several as a list. Raise `TypeError` for other types in a file."""
        if isinstance(value, str):
            values = value.split(SEPARATOR)
            return values if len(values) > 1 else value
        if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            return value
        raise TypeError(f"Expected a <class 'str'>. Got value: {value}")


class Spelled:
    """Type of options with several spellings, such as sizes."""

    def __init__(self, reads: Callable[[Any, str], Any], name: str) -> None:
        self.reads, self.name = reads, name

    def __repr__(self) -> str:
        return "size"

    def __call__(self, value: Any) -> Any:
        """Return the value in its own type. Raise `OptionsError` for other values."""
        return self.reads(value, self.name)


def check_saved(options: type[Options], values: Mapping[str, Any], where: str) -> None:
    """Raise `OptionsError` if options read from a file have unknown names or wrong types.

    Args:
        options: Options class.
        values: Values by option name.
        where: Path of the file, for the error message.
    """
    from dovetail.recipes.registry import refuse_unnamed

    method = values.get("method", options.default_of("method"))
    if not isinstance(method, str):
        raise OptionsError(f"{where}: method expects a string, got {method!r}.")
    refuse_unnamed(method)
    if not isinstance(values.get("recipe") or {}, dict):
        raise OptionsError(f"{where}: recipe expects a mapping of NAME: VALUE, got {str(values['recipe'])[:200]!r}.")
    try:
        parser = make_parser("pretrain", options, ["--method", method])
        parser.parse_object({name: value for name, value in values.items() if value is not None}, defaults=False)
    except DovetailError as error:
        raise OptionsError(f"{where}: {str(error)[:1000]}") from None
    except Exception as error:  # unexpected types make the parser raise almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise OptionsError(f"{where} cannot be read ({reason}); correct it.") from error


def underscored(argument: str) -> str:
    """Convert `--max-steps` to `--max_steps`, the name of the function's parameter. A value after `=` is kept."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def hyphened(option: str) -> str:
    """Convert `--max_steps` to `--max-steps`, as users write it."""
    return option.replace("_", "-")


def is_run(method: Any) -> bool:
    """Return whether the method of `dovetail show` is the path of a run's folder, and not a method's name."""
    from dovetail.recipes.table import parse

    if not isinstance(method, str | Path):
        return False
    if "/" in str(method):  # in no method's name
        return True
    if not Path(method).is_dir():
        return False
    try:
        parse(str(method))
    except DovetailError:
        return True
    return False


def positional_values(names: Sequence[str], arguments: list[str]) -> dict[str, str]:
    """Return the first positional argument by name, guessed before parsing.

    The word after an option counts as its value, except after --help.
    """
    values = [
        argument
        for before, argument in itertools.pairwise(["", *arguments])
        if not argument.startswith("-") and (not before.startswith("--") or "=" in before or before == "--help")
    ]
    return dict(zip(names, values[:1], strict=False))


def method_in(arguments: list[str], default: Any) -> str:
    """Return the method on the command line or in its config file."""
    from dovetail.recipes.registry import name_of

    method = default if isinstance(default, str) else AUTO
    for index, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        following = value if equals else (arguments[index + 1] if index + 1 < len(arguments) else "")
        if key == "--config" and following and not following.startswith("-"):  # the parser tells of a missing value
            method = method_in_file(following) or method
        if key == "--method":
            return name_of(following)
    return method


def method_in_file(path: str) -> str | None:
    """Return the method in a config file."""
    content = read_options_file(Path(path))
    if not isinstance(content, dict):
        raise OptionsError(f"The config file {path!r} contains no options; write them as NAME: VALUE.")
    method = content.get("method")
    return method if isinstance(method, str) else None


def add_recipe_options(parser: Any, method: str) -> None:
    """Add the options of a method's recipe to `parser`, with help texts from docstrings.

    For "auto", these are the options of all methods that may be chosen.
    """
    from dovetail.recipes.spelling import RUNS_SPELLING
    from dovetail.recipes.table import CHOSEN, options_of, parse, parts_of

    helps: dict[str, str] = {}
    known: dict[str, Any] = {}
    for name in CHOSEN if method == AUTO else (method,):
        known = {**options_of(name), **known}
        for part in parts_of(parse(name)).values():
            own = part.texts
            helps = {option: own.get(option.removeprefix(part.prefix), "") for option in part.options} | helps
    for option, parameter in known.items():
        # Files may contain options that have another name on the command line.
        text = SUPPRESS if option in RUNS_SPELLING else helps.get(option, "")
        parser.add_argument(f"--recipe.{option}", type=parameter.annotation, default=parameter.default, help=text)


def known_options(parser: Any) -> list[str]:
    """Return the options in the help of a parser, with their dashes."""
    listed = [action for action in parser._actions if action.help != SUPPRESS]
    return [option for action in listed for option in action.option_strings if option.startswith("--")]


def explain(message: str, known: list[str]) -> str:
    """Convert a parser's message to one sentence, with a suggestion for an unknown option."""
    message = " ".join(message.split())
    value = wrong_value(message)
    if value is not None:
        return value
    lacking = re.search(r"argument (--\w+): expected (?:one|at least one) argument", message)
    if lacking:
        return f"{hyphened(lacking[1])} expects a value; see --help."
    wrong = re.search(r"[Uu]nrecognized arguments: (\S+)|[Oo]ption '([^']+)' is not accepted", message)
    if not wrong:
        return (message if len(message) <= 1000 else f"{message[:1000]}…").rstrip(".") + "."
    name = wrong.group(1) or "--" + wrong.group(2)
    return unknown_option(name, known)


def unknown_option(name: str, known: list[str]) -> str:
    """Return the sentence for an unknown option: the methods that have it, or the most similar known option."""
    from dovetail.recipes.table import methods_with

    option = name.split("=")[0]
    others = methods_with(option.removeprefix("--recipe.")) if option.startswith("--recipe.") else ""
    if others:
        return f"The method has no option {hyphened(name)!r}; it is an option of {others}."
    plain = {one.removeprefix("--"): one for one in known}  # the dashes would make short names similar
    asked = option.removeprefix("--")
    meant = same_meaning(asked, plain)
    longer = [one for one in plain if one.startswith(asked)]  # abbreviations are not accepted
    close = [meant] if meant is not None else longer[:1] if len(longer) == 1 else []
    close = close or difflib.get_close_matches(asked, longer or plain, n=1, cutoff=0.0 if longer else 0.5)
    hint = f"did you mean {hyphened(plain[close[0]])!r}?" if close else "see --help."
    return f"There is no option {hyphened(name)!r}; {hint}"


KINDS = {"int": "a whole number", "float": "a number", "str": "a string", "bool": "true or false"}


def wrong_value(message: str) -> str | None:
    """Convert a parser's message about a value of the wrong type. Return None for other messages and types."""
    found = re.match(r'Parser key "([\w.]+)"(?: element \d+)?: (.*?) (?:Got|Given) value: (.*?)\.?$', message)
    if not found:
        return None
    name, kinds, value = found.groups()
    value = value if len(value) <= 200 else f"{value[:200]}…"
    classes = re.findall(r"<class '(\w+)'>", kinds.partition("Errors:")[0])
    choices = re.findall(r"'([^']*)'|(\d+)", " ".join(re.findall(r"Literal\[(.*?)\]", kinds.partition("Errors:")[0])))
    words = [KINDS[one] for one in classes if one in KINDS] + [text or number for text, number in choices]
    if not words or not set(classes) <= KINDS.keys() | {"NoneType"}:
        return None
    listed = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    return f"{hyphened('--' + name)} is {value}; it must be {listed}."
