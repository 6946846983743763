"""The command line: one thin command per public function, generated from its typed signature.

Heavy imports happen inside the verbs, so that `dovetail --help` answers at once.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import itertools
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from dovetail import __version__
from dovetail.errors import DovetailError, printable, unknown_name


@dataclass(frozen=True)
class Verb:
    """A command: where its function is, what it does in one line, and what to do with its result."""

    module: str
    function: str
    summary: str
    positional: tuple[str, ...] = ()
    has_recipe: bool = False
    called: str = ""  # instead of the function, with the options that were named

    def load(self, function: str = "") -> Callable[..., Any]:
        """Return the function, or another one of its module, which is imported."""
        found: Callable[..., Any] = getattr(importlib.import_module(self.module), function or self.function)
        return found


VERBS: dict[str, Verb] = {
    "pretrain": Verb(
        "dovetail.pretraining",
        "pretrain",
        "pre-train a model on a folder of unlabelled images",
        has_recipe=True,
        called="pretrain_given",
    ),
    "prepare": Verb("dovetail.preparing", "prepare", "write photographs as WebDataset shards"),
    "export": Verb("dovetail.exporting", "export", "write a run's weights in a library's format"),
    "show": Verb("dovetail.showing", "show", "print a method's expanded recipe", ("method",), has_recipe=True),
    "evaluate knn": Verb("dovetail.evaluating", "evaluate_knn", "classify by the nearest neighbours among features"),
    "evaluate linear": Verb("dovetail.evaluating", "evaluate_linear", "train a linear classifier on frozen features"),
    "evaluate dense": Verb("dovetail.evaluating", "evaluate_dense", "measure frozen maps on labelled pixels"),
    "embed": Verb("dovetail.report.embedding", "embed", "write one vector for each photograph"),
    "visualize pca": Verb("dovetail.report.visualize", "pca", "draw feature maps before and after pre-training"),
    "visualize slots": Verb("dovetail.report.visualize", "slots", "draw SlotCon's slots over photographs"),
    "visualize attention": Verb("dovetail.report.visualize", "attention", "draw what a ViT's tokens attend to"),
    "visualize correspondence": Verb(
        "dovetail.report.visualize", "correspondence", "draw which cells of two pictures match"
    ),
    "visualize neighbours": Verb("dovetail.report.visualize", "neighbours", "draw the nearest photographs"),
    "finetune classify": Verb("dovetail.finetuning", "finetune_classify", "fine-tune for classification"),
    "finetune detect": Verb("dovetail.finetuning", "finetune_detect", "fine-tune for detection and instances"),
    "finetune segment": Verb("dovetail.finetuning", "finetune_segment", "fine-tune for semantic segmentation"),
    "predict": Verb("dovetail.predicting", "predict", "write a fine-tuned run's predictions for photographs"),
    "compare": Verb("dovetail.comparing", "compare", "print the results of several runs side by side", ("results",)),
    "methods": Verb("dovetail.showing", "methods", "list the methods"),
    "models": Verb("dovetail.showing", "models", "list the models", ("pattern",)),
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line. Exits with 0, with 2 after a mistake in what was asked for, 130 after Ctrl-C."""
    try:
        code = run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:  # a second one, while the first was answered
        code = 130
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run a command and return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"dovetail {__version__}")
        return 0
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter is no reason to stop
    try:
        name = command_in(arguments)
        if name is None:
            print(overview(arguments[0]))
            return 0
        return call(name, arguments[len(name.split()) :])
    except DovetailError as error:
        print(f"dovetail: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more has nothing left to stop
        print("dovetail: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0  # the reader of a pipe has seen enough


def command_in(arguments: list[str]) -> str | None:
    """Return the command that arguments begin with, of one word or two; None where a group's help is asked for.

    Raises:
        DovetailError: For an unknown command.
    """
    first = arguments[0]
    kinds = [name.split()[1] for name in VERBS if name.startswith(f"{first} ")]
    if not kinds:
        if first not in VERBS:
            raise unknown_name("command", first, {name.split()[0] for name in VERBS})
        return first
    if len(arguments) > 1 and arguments[1] in ("-h", "--help", "help"):
        return None
    if len(arguments) == 1 or arguments[1].startswith("-"):
        raise DovetailError(f"`dovetail {first}` needs one word more: {', '.join(kinds)}.")
    if arguments[1] not in kinds:
        raise unknown_name(f"command '{first}' of the kind", arguments[1], kinds)
    return f"{first} {arguments[1]}"


def overview(group: str = "") -> str:
    """Return the text of `dovetail --help`, or of a group of commands such as `dovetail evaluate --help`."""
    lines = ["usage: dovetail COMMAND [options]", "", "Pre-train whole dense-prediction models on unlabelled images."]
    lines += ["", "commands:"]
    lines += [f"  {name:<24} {verb.summary}" for name, verb in VERBS.items() if name.startswith(group)]
    lines += ["", "`dovetail COMMAND --help` lists a command's options, with units and defaults."]
    return "\n".join(lines)


def call(name: str, arguments: list[str]) -> int:
    """Parse a command's options and call its function."""
    verb = VERBS[name]
    function = verb.load()
    arguments = [underscored(argument) for argument in arguments]
    parser = make_parser(name, verb, function, arguments)
    parser.parse_args(arguments)  # with every default, as --print-config writes them
    # What a preset or a resumed run stands for gives way to an option that is named, though it names the default.
    given = parser.parse_args(arguments, defaults=False).as_dict()
    whole = given.get("preset") == "paper" or is_of_a_run(arguments)
    if given.pop("config", None):
        typed = make_parser(name, verb, function, arguments, reads_config=False)
        given, given["from_file"] = told_apart(given, typed.parse_args(arguments, defaults=False).as_dict())
    if "recipe" in given:
        given["recipe"] = chosen_options(parser, given["recipe"], arguments, whole=whole)
    result = verb.load(verb.called)(**given)
    if isinstance(result, str):
        print(result)
    return 0


def is_of_a_run(arguments: list[str]) -> bool:
    """Return whether the config file that arguments name was written by a run, whose options are complete."""
    from dovetail.pretraining import OF_A_RUN

    for index, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        if key == "--config":
            path = Path(value if equals else next(iter(arguments[index + 1 :]), ""))
            return path.is_file() and path.read_bytes().startswith(OF_A_RUN.encode())
    return False


def told_apart(given: dict[str, Any], typed: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the options that count, and the names of those that only a config file gave.

    Args:
        given: What command line and file say together.
        typed: What the command line says; it counts more than the file, wherever --config stands.
    """
    typed.pop("config", None)
    from_file = sorted(given.keys() - typed.keys())
    recipe = {**(given.get("recipe") or {}), **(typed.get("recipe") or {})}
    return given | typed | ({"recipe": recipe} if recipe else {}), from_file


def chosen_options(parser: Any, recipe: dict[str, Any] | None, arguments: list[str], *, whole: bool) -> dict[str, Any]:
    """Return the recipe's options that were chosen: named on the command line, or in a file and not the default there.

    A file that --print-config wrote names them all, and leaves to the preset what it does not change. Of the file of a
    run, or of a paper, which has the preset "paper", all count (`whole`). Its image size gives way to --image-size.
    """
    named = {argument.partition("=")[0].removeprefix("--") for argument in arguments}
    defaults = parser.get_defaults().as_dict().get("recipe", {})
    return {
        option: value
        for option, value in (recipe or {}).items()
        if f"recipe.{option}" in named
        or (
            (whole or option not in defaults or value != defaults[option])
            and not (option == "image_size" and option in named)
        )
    }


def make_parser(
    name: str, verb: Verb, function: Callable[..., Any], arguments: list[str], *, reads_config: bool = True
) -> Any:
    """Return the parser of a command, with the options of the chosen method's recipe as `--recipe.NAME`.

    Without `reads_config` it takes --config for a name and leaves the file alone: what it parses was typed.
    """
    import jsonargparse

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise DovetailError(explain(message, known_options(self)))

        def format_help(self, formatter: Any = None) -> str:
            return re.sub(OPTION, lambda match: hyphened(match.group()), super().format_help(formatter))

    positional = positional_values(verb, arguments)
    parser = Parser(prog=f"dovetail {name}", description=(inspect.getdoc(function) or "").split("\n\n")[0])
    if verb.has_recipe and name != "show":
        action = "config" if reads_config else "append"
        parser.add_argument("--config", action=action, help="YAML file with any of these options")
    signature = inspect.signature(function).parameters
    helps = docstring_helps(function)
    for option in verb.positional:
        count = "*" if signature[option].annotation.startswith("list[") else "?"
        parser.add_argument(option, type=str, nargs=count, default=signature[option].default, help=helps[option])
    plain = [option for option, parameter in signature.items() if parameter.annotation in ("Any", "bool")]
    for option in plain:  # modules and datasets have names here; switches take no value
        how = {"action": "store_true"} if signature[option].annotation == "bool" else {"type": str, "default": None}
        parser.add_argument(f"--{option}", help=helps[option], **how)
    several = {name: SEVERAL[one.annotation] for name, one in signature.items() if one.annotation in SEVERAL}
    for option, kind in several.items():
        if option not in verb.positional:
            default = signature[option].default
            parser.add_argument(f"--{option}", type=kind, nargs="+", default=list(default), help=helps[option])
    parser.add_function_arguments(function, skip={"recipe", *verb.positional, *plain, *several}, as_group=False)
    if verb.has_recipe:
        add_recipe_options(parser, positional.get("method") or method_in(arguments, signature["method"].default))
    return parser


# Options that take several values: `--k 10 20`.
SEVERAL: dict[str, type] = {"list[int]": int, "list[float]": float, "list[str]": str}
OPTION = r"(?<![\w-])--[a-z][\w.-]*"


def underscored(argument: str) -> str:
    """Return `--max-steps` as `--max_steps`, the name of the function's parameter; a value after `=` stays."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def hyphened(option: str) -> str:
    """Return `--max_steps` as users write it."""
    return option.replace("_", "-")


def positional_values(verb: Verb, arguments: list[str]) -> dict[str, str]:
    """Return the first positional argument by name, as far as it can be told before parsing.

    The word after an option is taken for its value: only --help has none, where this matters.
    """
    values = [
        argument
        for before, argument in itertools.pairwise(["", *arguments])
        if not argument.startswith("-") and (not before.startswith("--") or "=" in before or before == "--help")
    ]
    return dict(zip(verb.positional, values[:1], strict=False))


def method_in(arguments: list[str], default: Any) -> str:
    """Return the method that the command line or its YAML file names."""
    method = default if isinstance(default, str) else "decon-sl"
    for index, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        following = value if equals else (arguments[index + 1] if index + 1 < len(arguments) else "")
        if key == "--config":
            method = method_in_file(following) or method
        if key == "--method":
            return following
    return method


def method_in_file(path: str) -> str | None:
    """Return the method that a YAML file names."""
    from pathlib import Path

    from dovetail.options_file import read_options_file

    content = read_options_file(Path(path))
    if not isinstance(content, dict):
        raise DovetailError(f"The config file {path!r} holds no options; write them as NAME: VALUE.")
    method = content.get("method")
    return method if isinstance(method, str) else None


def check_options(options: dict[str, Any], where: str) -> None:
    """Raise `DovetailError` for options of `pretrain`, read from a file, of names or kinds that it does not have."""
    method = options.get("method", "decon-sl")
    if not isinstance(method, str):
        raise DovetailError(f"{where}: method is {method!r}; it must be text.")
    if not isinstance(options.get("recipe") or {}, dict):
        raise DovetailError(f"{where}: recipe is {options['recipe']!r}; it must be NAME: VALUE for each option.")
    verb = VERBS["pretrain"]
    try:
        parser = make_parser("pretrain", verb, verb.load(), ["--method", method])
        parser.parse_object({name: value for name, value in options.items() if value is not None}, defaults=False)
    except DovetailError as error:
        raise DovetailError(f"{where}: {error}") from None
    except Exception as error:  # values of no kind that the parser expects make it raise almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DovetailError(f"{where} cannot be read: {reason}.") from error


def add_recipe_options(parser: Any, method: str) -> None:
    """Add the options of a method's recipe to `parser`, with the text of the functions' docstrings."""
    from dovetail.recipes.table import options_of, parse, parts_of

    helps: dict[str, str] = {}
    for part in parts_of(parse(method)).values():
        own = docstring_helps(part.function)
        helps = {option: own.get(option.removeprefix(part.prefix), "") for option in part.options} | helps
    for option, parameter in options_of(method).items():
        parser.add_argument(
            f"--recipe.{option}", type=parameter.annotation, default=parameter.default, help=helps.get(option, "")
        )


def docstring_helps(function: Callable[..., Any]) -> dict[str, str]:
    """Return the text on each parameter in a function's docstring."""
    text = inspect.getdoc(function) or ""
    found = re.findall(r"^    (\w+): (.+(?:\n {6,}.+)*)", text, flags=re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in found}


def known_options(parser: Any) -> list[str]:
    """Return a parser's option names, with their dashes."""
    return [option for action in parser._actions for option in action.option_strings if option.startswith("--")]


def explain(message: str, known: list[str]) -> str:
    """Return a parser's message as one sentence, with the nearest option for a wrong one."""
    message = " ".join(message.split())
    value = wrong_value(message)
    if value is not None:
        return value
    lacking = re.search(r"argument (--\w+): expected (?:one|at least one) argument", message)
    if lacking:
        return f"{hyphened(lacking[1])} needs a value; see --help."
    wrong = re.search(r"[Uu]nrecognized arguments: (\S+)|[Oo]ption '([^']+)' is not accepted", message)
    if not wrong:
        return message.rstrip(".") + "."
    name = wrong.group(1) or "--" + wrong.group(2)
    return f"There is no option {hyphened(name)!r}; {hint_for(name.split('=')[0], known)}"


def hint_for(option: str, known: list[str]) -> str:
    """Return whose option a wrong one is: of other methods, else the nearest of the known ones."""
    from dovetail.recipes.table import methods_with

    others = methods_with(option.removeprefix("--recipe.")) if option.startswith("--recipe.") else ""
    if others:
        return f"it belongs to other methods: {others}."
    close = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
    return f"did you mean {hyphened(close[0])!r}?" if close else "see --help."


KINDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}


def wrong_value(message: str) -> str | None:
    """Return a parser's message on a value of another kind in words; None for other messages and other kinds."""
    found = re.match(r'Parser key "([\w.]+)"(?: element \d+)?: (.*?) (?:Got|Given) value: (.*?)\.?$', message)
    if not found:
        return None
    name, kinds, value = found.groups()
    classes = re.findall(r"<class '(\w+)'>", kinds.partition("Errors:")[0])
    choices = re.findall(r"'([^']*)'|(\d+)", " ".join(re.findall(r"Literal\[(.*?)\]", kinds.partition("Errors:")[0])))
    words = [KINDS[one] for one in classes if one in KINDS] + [text or number for text, number in choices]
    if not words or not set(classes) <= KINDS.keys() | {"NoneType"}:
        return None
    listed = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    return f"{hyphened('--' + name)} is {value}; it must be {listed}."


if __name__ == "__main__":
    main()
