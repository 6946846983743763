"""The command line: one thin command per public function, generated from its typed signature.

Heavy modules are imported inside the commands, so `dovetail --help` is fast.
"""

from __future__ import annotations

import errno
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from dovetail import __version__
from dovetail.errors import DovetailError, OptionsError, printable, unknown_name
from dovetail.files.missing import refuse_missing
from dovetail.networks.known import refuse_unknown
from dovetail.options import AUTO, Options, body, options_class
from dovetail.output import drop_standard_output, outliving_readers
from dovetail.parsing import joined, make_parser, underscored

ENDED_BY_PIPE = 141  # 128 + SIGPIPE, as shells report of `cat` and `grep`


@dataclass(frozen=True)
class Verb:
    """A command.

    Attributes:
        module: Module of the function.
        function: Name of the function.
        summary: One-line description for `--help`.
        options_at: Module and name of its options class, if the function's module is slow to import.
        early: Module and name of a function that checks the options before PyTorch is imported.
        reads_config: Whether the command has --config.
        only_prints: Whether the command only prints.
        slow: Whether the command imports PyTorch, which takes seconds.
    """

    module: str
    function: str
    summary: str
    options_at: str = ""
    early: str = ""
    reads_config: bool = False
    only_prints: bool = False
    slow: bool = True

    def load(self) -> Callable[..., Any]:
        """Import the module and return the function."""
        found: Callable[..., Any] = getattr(importlib.import_module(self.module), self.function)
        return found

    def options(self) -> type[Options]:
        """Return the options class without importing heavy modules."""
        if not self.options_at:
            return options_class(self.load())
        found: type[Options] = imported(self.options_at)
        return found

    def check_early(self, options: Options) -> None:
        """Raise `DovetailError` for options that can be refused without importing PyTorch."""
        refuse_missing(options)
        if self.early:
            imported(self.early)(options)
        model = vars(options).get("model")
        if isinstance(model, str) and model != AUTO:
            refuse_unknown(model)


def imported(path: str) -> Any:
    """Return the object at "module:name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


OF_EVALUATE = "dovetail.downstream.evaluate:check_early"
OF_REPORT = "dovetail.report.options:"
ABOUT = "Pre-train whole dense-prediction models on unlabelled images."
GROUPS = {
    "evaluate": "Evaluate frozen features on labelled images.",
    "finetune": "Fine-tune a model on labelled images.",
    "visualize": "Draw the features of a run.",
}
"""Descriptions of the groups of commands."""

VERBS: dict[str, Verb] = {
    "pretrain": Verb(
        "dovetail.run.pretrain",
        "pretrain",
        "pre-train a model on unlabelled images",
        "dovetail.run.options:PretrainOptions",
        "dovetail.run.early:check_early",
        reads_config=True,
    ),
    "try": Verb(
        "dovetail.tryout.job",
        "try_out",
        "measure the gain from pre-training on your images within a time budget",
        early="dovetail.tryout.job:check_early",
    ),
    "prepare": Verb("dovetail.data.shards.prepare", "prepare", "write images as WebDataset shards"),
    "export": Verb("dovetail.run.export", "export", "export the weights of a run for another library"),
    "show": Verb(
        "dovetail.run.show", "show", "print the recipe of a method, published or as in a run", only_prints=True
    ),
    "evaluate knn": Verb(
        "dovetail.downstream.evaluate",
        "evaluate_knn",
        "evaluate frozen features with nearest neighbours",
        early=OF_EVALUATE,
    ),
    "evaluate linear": Verb(
        "dovetail.downstream.evaluate",
        "evaluate_linear",
        "evaluate frozen features with a linear classifier",
        early=OF_EVALUATE,
    ),
    "evaluate dense": Verb(
        "dovetail.downstream.evaluate",
        "evaluate_dense",
        "evaluate frozen feature maps on labelled pixels",
        early=OF_EVALUATE,
    ),
    "embed": Verb(
        "dovetail.report.embedding",
        "embed",
        "write one feature vector per image",
        OF_REPORT + "EmbedOptions",
        "dovetail.report.early:check_early",
    ),
    "visualize pca": Verb(
        "dovetail.report.visualize",
        "pca",
        "draw feature maps before and after pre-training",
        OF_REPORT + "PcaOptions",
    ),
    "visualize slots": Verb(
        "dovetail.report.visualize", "slots", "draw SlotCon's slots over images", OF_REPORT + "SlotsOptions"
    ),
    "visualize attention": Verb(
        "dovetail.report.visualize",
        "attention",
        "draw the attention maps of a ViT",
        OF_REPORT + "AttentionOptions",
    ),
    "visualize correspondence": Verb(
        "dovetail.report.visualize",
        "correspondence",
        "draw matching cells of two images",
        OF_REPORT + "CorrespondenceOptions",
    ),
    "visualize neighbours": Verb(
        "dovetail.report.visualize",
        "neighbours",
        "draw the nearest neighbours of images",
        OF_REPORT + "NeighboursOptions",
    ),
    "finetune classify": Verb(
        "dovetail.downstream.finetune", "finetune_classify", "fine-tune for classification", early=OF_EVALUATE
    ),
    "finetune detect": Verb(
        "dovetail.downstream.finetune",
        "finetune_detect",
        "fine-tune for object detection and instance segmentation",
        early=OF_EVALUATE,
    ),
    "finetune segment": Verb(
        "dovetail.downstream.finetune", "finetune_segment", "fine-tune for semantic segmentation", early=OF_EVALUATE
    ),
    "predict": Verb(
        "dovetail.downstream.predict",
        "predict",
        "write the predictions of a fine-tuned model for images",
        early="dovetail.downstream.predict:check_early",
    ),
    "compare": Verb("dovetail.report.compare", "compare", "print the results of several runs side by side"),
    "methods": Verb("dovetail.recipes.show", "methods", "list the methods", only_prints=True, slow=False),
    "models": Verb("dovetail.recipes.show", "models", "list the models", only_prints=True, slow=False),
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line. The exit code is 0, 2 after an error in the options or the data, or 130 after Ctrl-C."""
    try:
        code = run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:  # a second one, while the first one was handled
        code = 130
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run a command and return the exit code.

    If the reader of its output has gone, a command that only prints ends like other Unix tools. Any other command
    continues, and its output is dropped.
    """
    printing = only_prints(arguments)
    try:
        with nullcontext() if printing else outliving_readers():
            try:
                return answer(arguments)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
    except BrokenPipeError:
        if not printing:
            raise
        drop_standard_output()
        return ENDED_BY_PIPE


def only_prints(arguments: list[str]) -> bool:
    """Return whether a command only prints."""
    verb = VERBS.get(arguments[0]) or VERBS.get(" ".join(arguments[:2])) if arguments else None
    return verb is None or verb.only_prints or not {"-h", "--help", "help"}.isdisjoint(arguments)


def answer(arguments: list[str]) -> int:
    """Run a command, print errors as one sentence, and return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"dovetail {__version__}")
        return 0
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # the terminal may not support a character
    try:
        name = command_in(arguments)
        if name is None:
            print(overview(arguments[0]))
            return 0
        return call(name, arguments[len(name.split()) :])
    except DovetailError as error:
        text = str(error)[:1500].replace("\n", "\\n")  # a name may contain a line break
        print(f"dovetail: {printable(text)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is nothing left to stop
        print(f"dovetail: {str(interrupt) or 'Stopped by Ctrl-C (SIGINT).'}", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"dovetail: The file name {error.filename[:80]!a}… is too long; shorten it.", file=sys.stderr)
        return 2


def command_in(arguments: list[str]) -> str | None:
    """Return the command of one or two words, or None if the help of a group of commands is requested.

    Raises:
        OptionsError: The command is unknown.
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
        raise OptionsError(f"`dovetail {first}` expects another word: {', '.join(kinds)}.")
    if arguments[1] not in kinds:
        raise unknown_name(f"`dovetail {first}` command", arguments[1], kinds)
    return f"{first} {arguments[1]}"


def overview(group: str = "") -> str:
    """Return the help of `dovetail --help`, or of a group of commands such as `dovetail evaluate --help`."""
    command = f"{group} COMMAND" if group else "COMMAND"
    lines = [f"usage: dovetail {command} [options]", "", GROUPS.get(group, ABOUT), "", "commands:"]
    lines += [f"  {name:<24} {verb.summary}" for name, verb in VERBS.items() if name.startswith(group)]
    lines += ["", "`dovetail COMMAND --help` lists a command's options, with units and defaults."]
    return "\n".join(lines)


def call(name: str, arguments: list[str]) -> int:
    """Parse the options of a command and call its function with those that are specified."""
    options = VERBS[name].options()
    arguments = joined([underscored(argument) for argument in arguments], options)
    parser = parser_of(name, arguments)
    if any(argument.startswith("--print_config") for argument in arguments):
        parsed(parser, arguments)  # with every default
    # A specified option overrides presets and saved values, even if it equals the default.
    given = parsed(parser, arguments, defaults=False).as_dict()
    whole = given.get("preset") == "paper" or is_of_a_run(arguments)
    from_file: list[str] = []
    if given.pop("config", None):
        typed = make_parser(name, options, arguments, config="named")
        given, from_file = told_apart(given, parsed(typed, arguments, defaults=False).as_dict())
    if "recipe" in given:
        given["recipe"] = chosen_options(parser, given["recipe"], arguments, whole=whole)
    asked = options.given(given, from_file=from_file)
    VERBS[name].check_early(asked)
    if VERBS[name].slow and "torch" not in sys.modules:
        print("Loading PyTorch …", file=sys.stderr, flush=True)
    result = body(VERBS[name].load())(asked)
    if isinstance(result, str):
        print(result)
    return 0


def parsed(parser: Any, arguments: list[str], *, defaults: bool = True) -> Any:
    """Return the options on the command line and in the config file.

    Raises:
        OptionsError: A value has the wrong type, such as a mapping instead of a list.
    """
    try:
        return parser.parse_args(arguments, defaults=defaults)
    except DovetailError:
        raise
    except Exception as error:  # the parser raises almost anything for nested values in a file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise OptionsError(
            f"The options cannot be read ({reason[:200]}); compare the lists and mappings in the config file with the "
            "output of `--print-config`."
        ) from error


def parser_of(name: str, arguments: list[str]) -> Any:
    """Return the parser of a command. Its recipe options depend on the method on the command line."""
    verb = VERBS[name]
    description = verb.summary[0].upper() + verb.summary[1:] + "."
    config: Literal["read", "none"] = "read" if verb.reads_config else "none"
    return make_parser(name, verb.options(), arguments, description=description, config=config)


def is_of_a_run(arguments: list[str]) -> bool:
    """Return whether the config file was saved by a run, so its options are complete."""
    from dovetail.run.folder import OF_A_RUN

    for index, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        if key == "--config":
            path = Path(value if equals else next(iter(arguments[index + 1 :]), ""))
            return path.is_file() and path.read_bytes().startswith(OF_A_RUN.encode())
    return False


def told_apart(given: dict[str, Any], typed: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Merge the options, and return the names of those that only the config file has (including "recipe.NAME").

    Args:
        given: Options from the command line and the config file.
        typed: Options from the command line, which override the file at any position of --config.
    """
    typed.pop("config", None)
    from_file = sorted(given.keys() - typed.keys())
    recipe = {**(given.get("recipe") or {}), **(typed.get("recipe") or {})}
    from_file += [f"recipe.{name}" for name in recipe.keys() - (typed.get("recipe") or {}).keys()]
    return given | typed | ({"recipe": recipe} if recipe else {}), from_file


def chosen_options(parser: Any, recipe: dict[str, Any] | None, arguments: list[str], *, whole: bool) -> dict[str, Any]:
    """Return the recipe options that are specified: on the command line, or in a file with other values than default.

    A file from --print-config contains all options; those with default values are left to the preset. All options in a
    file of a run, or of a paper (with the preset "paper"), are used (`whole`), but --image-size overrides its size.
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


if __name__ == "__main__":
    main()
