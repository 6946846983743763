"""Typed options: one field is all that an option takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image

from dovetail.cli import VERBS, Verb, run
from dovetail.errors import DovetailError, OptionsError
from dovetail.options import Auto, Options, Range, body, option, option_infos, options_class, takes
from dovetail.parsing import joined, make_parser
from dovetail.recipe import Recipe, Tap
from dovetail.recipes.registry import register_method
from dovetail.recipes.table import build, options_of
from dovetail.run.folder import anchored, saved_options, write_config
from dovetail.run.options import PretrainOptions
from dovetail.run.resume import defaults, resumed


@dataclass(frozen=True, kw_only=True)
class Baking(Options):
    """Options of a verb of this test's own."""

    loaf: str = option("rye", "Kind of loaf.", positional=True)
    minutes: int | Auto = option("auto", "Minutes in the oven.", Range(1, 90))
    heat: Literal["low", "high"] = option("low", "Heat of the oven.", movable=True)
    seeds: Sequence[float] = option((), "Grams of each kind of seed.", Range(0))
    loaves: int = option(1, "Loaves of bread.")
    out: str | Path = option("", "Where it goes.")


@takes(Baking)
def bake(options: Baking) -> str:
    """Bake.

    Returns:
        What was baked.
    """
    return f"{options.loaf} {options.minutes} {options.heat} {list(options.seeds)} {sorted(options.named)}"


def test_a_function_takes_the_fields_as_keyword_arguments() -> None:
    assert bake() == "rye auto low [] []"
    assert bake(minutes=3, seeds=[1.5]) == "rye 3 low [1.5] ['minutes', 'seeds']"
    assert bake("oat") == "oat auto low [] ['loaf']"
    assert [*inspect.signature(bake).parameters] == ["loaf", "minutes", "heat", "seeds", "loaves", "out"]
    assert inspect.signature(bake).parameters["minutes"].default == "auto"


@pytest.mark.parametrize(
    ("args", "kwargs", "sentence"),
    [
        ((), {"minuts": 3}, "There is no bake option 'minuts'; did you mean 'minutes'?"),
        ((), {"save_dir": "a"}, "There is no bake option 'save_dir'; choose one of: out."),
        (("rye", 3), {}, "bake got too many positional arguments; specify its options by name."),
        (("rye",), {"loaf": "oat"}, "bake got multiple values for argument 'loaf'; specify its options by name."),
    ],
)
def test_arguments_that_are_no_options_get_a_sentence(
    args: tuple[Any, ...], kwargs: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(OptionsError) as caught:
        bake(*args, **kwargs)
    assert str(caught.value) == sentence


def test_the_docstring_lists_them_before_what_is_returned() -> None:
    text = inspect.getdoc(bake) or ""
    assert text.index("minutes: Minutes in the oven.") < text.index("Returns:")
    assert text.startswith("Bake.\n")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"minutes": 0}, "minutes is 0; it must be from 1 to 90."),
        ({"minutes": float("nan")}, "minutes is nan; it must be from 1 to 90."),
        ({"minutes": "long"}, "minutes is 'long'; it must be a number or 'auto'."),
        ({"minutes": 3.0}, "minutes is 3.0; it must be a whole number or 'auto'."),
        ({"loaves": 2.5}, "loaves is 2.5; it must be a whole number."),
        ({"loaves": "two"}, "loaves is 'two'; it must be a number."),
        ({"heat": "hihg"}, "There is no heat 'hihg'; did you mean 'high'?"),
        ({"seeds": [1.0, -2.0]}, "seeds is -2; it must be at least 0."),
    ],
)
def test_values_that_do_not_fit_get_a_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DovetailError) as caught:
        bake(**given)
    assert str(caught.value) == sentence


def test_what_a_file_gave_is_known_and_stays_known() -> None:
    options = Baking.given({"heat": "high", "minutes": 4}, from_file=["heat"])
    assert (options.named, options.from_file) == ({"heat", "minutes"}, {"heat"})
    moved = options.changed(minutes=5)
    assert (moved.minutes, moved.named, moved.typed("heat"), moved.typed("minutes")) == (
        *(5, options.named),
        *(False, True),
    )
    with pytest.raises(DovetailError, match="no option 'haet'; did you mean 'heat'"):
        Baking.given({"haet": "high"})


def test_the_command_line_is_made_of_the_fields(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(VERBS, "bake", Verb(__name__, "bake", "bake a loaf"))
    assert run(["bake", "oat", "--seeds", "1", "2.5", "--heat", "high"]) == 0
    assert capsys.readouterr().out == "oat auto high [1.0, 2.5] ['heat', 'loaf', 'seeds']\n"
    assert run(["bake", "--minutes", "100"]) == 2
    assert "minutes is 100; it must be from 1 to 90." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(["bake", "--help"])
    assert "Grams of each kind of seed." in capsys.readouterr().out


def test_an_option_is_added_by_its_field_alone(tmp_path: Path) -> None:
    """Command line, config file, what a run saves, and whether it may change on resume, all follow from the field."""

    @dataclass(frozen=True, kw_only=True)
    class More(PretrainOptions):
        """The options of `pretrain` and one more."""

        crumbs: int = option(3, "Crumbs on the table.", Range(0, 9), movable=True)

    parser = make_parser("pretrain", More, [])
    assert parser.parse_args(["--crumbs", "5"]).crumbs == 5
    assert More.given({"crumbs": 4}).as_dict()["crumbs"] == 4
    assert "crumbs" in More.movable()
    with pytest.raises(DovetailError, match="crumbs is 12; it must be from 0 to 9"):
        More(crumbs=12)


def leaning(taps: Mapping[str, Tap], *, angle: float = 0.5) -> Recipe:
    """A method from outside."""
    return build("simclr", taps)


def tilted(taps: Mapping[str, Tap], *, slope: int = 2) -> Recipe:
    """Another one, of the same name."""
    return build("simclr", taps)


def test_a_parser_is_built_once_and_anew_for_methods_from_outside() -> None:
    first, again, other = (make_parser("pretrain", PretrainOptions, ["--method", m]) for m in ("dino", "dino", "ibot"))
    assert first is again
    assert first is not other
    assert first.parse_args(["--seed", "4", "--recipe.hidden", "8"]).recipe.hidden == 8
    later = first.parse_args(["--method", "dino"])  # what was typed before is not kept
    assert (later.seed, later.recipe.hidden) == (0, options_of("dino")["hidden"].default)
    for function, name in ((leaning, "angle"), (tilted, "slope")):
        register_method("crooked", function)
        parser = make_parser("pretrain", PretrainOptions, ["--method", "crooked"])
        assert f"--recipe.{name}" in parser.format_help()
        assert ("--recipe.angle" in parser.format_help()) == (name == "angle")


def test_an_option_with_several_values(tmp_path: Path) -> None:
    def of(*arguments: str) -> object:
        words = joined(["--data", *arguments, "--seed", "3"], PretrainOptions)
        parsed = make_parser("pretrain", PretrainOptions, words).parse_args(words)
        assert parsed.seed == 3
        return parsed.data

    assert of("a") == "a"
    assert of("[a]") == "[a]"
    assert of("a", "b c", "[d]") == ["a", "b c", "[d]"]
    assert joined(["--data=a", "--data"], PretrainOptions) == ["--data=a", "--data"]
    saved = {**defaults(), **RUN}
    for data in ("a", ["a", "b"]):
        write_config(tmp_path, {**saved, "data": data})
        assert saved_options(tmp_path)["data"] == anchored("data", data)
    write_config(tmp_path, {**saved, "data": [Image.new("L", (1, 1))]})
    assert saved_options(tmp_path)["data"] is None
    for wrong in (3, [], ["a", 3], [["a"]]):
        (tmp_path / "config.yaml").write_text(f"data: {wrong}")
        with pytest.raises(DovetailError, match="data"):
            saved_options(tmp_path)


@pytest.mark.parametrize("name", sorted(PretrainOptions.movable()))
def test_a_run_goes_on_with_other_values_of_what_may_change(name: str, tmp_path: Path) -> None:
    write_config(tmp_path, {**defaults(), **RUN})
    other = {"knn_data": "elsewhere", "dense_data": "elsewhere", "accelerator": "cpu", "strategy": "ddp"}
    value = other.get(name, ["mlflow"] if name == "loggers" else 2)
    options = resumed(PretrainOptions.given({name: value, "out": tmp_path}), tmp_path)
    assert getattr(options, name) == value


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 5), ("lr", 0.5), ("epochs", 9), ("model", "timm/resnet18"), ("compile", True)]
)
def test_a_run_does_not_go_on_with_other_values_of_the_rest(name: str, value: Any, tmp_path: Path) -> None:
    write_config(tmp_path, {**defaults(), **RUN})
    with pytest.raises(DovetailError, match=f"has {name} .* cannot be changed .*; omit {name}"):
        resumed(PretrainOptions.given({name: value, "out": tmp_path}), tmp_path)


RUN = {
    "data": "photos",
    "model": "timm/resnet50",
    "out": "run",
    "preset": "small",
    "recipe": {},
    "batch_size": 32,
    "accumulate": 2,
    "devices": 2,
    "num_nodes": 2,
    "epochs": 5,
    "lr": 0.1,
}


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_option_of_every_verb_has_its_text(name: str) -> None:
    infos = option_infos(options_class(VERBS[name].load()))
    assert all(info.help.endswith(".") and info.help.lstrip('"')[0].isalnum() for info in infos.values())


def test_the_function_of_one_object_is_there_for_those_who_have_one() -> None:
    assert body(bake)(Baking(minutes=2)) == "rye 2 low [] []"
