"""The command line: what it prints, what it says of mistakes, and its list of options, so that it cannot drift."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dovetail.cli import ABOUT, GROUPS, VERBS, Verb, parser_of, run
from dovetail.options import option_infos, options_class, positional_in, same_meaning, takes

PRETRAIN = [
    "accelerator",
    "accumulate",
    "batch-size",
    "budget",
    "checkpoint-blocks",
    "compile",
    "config",
    "data",
    "decoder",
    "dense-data",
    "dense-readings",
    "devices",
    "drop-path",
    "encoder",
    "encoder-batch-norm",
    "epochs",
    "freeze-encoder-epochs",
    "help",
    "image-size",
    "in-channels",
    "value-range",
    "init",
    "keep-every-epochs",
    "knn-data",
    "knn-readings",
    "log-every-steps",
    "loggers",
    "lr",
    "masks",
    "max-steps",
    "mean",
    "method",
    "model",
    "num-nodes",
    "out",
    "overwrite",
    "precision",
    "preset",
    "print-config",
    "profile",
    "report-every-minutes",
    "resume",
    "save-every-minutes",
    "seed",
    "skip-nonfinite-steps",
    "std",
    "strategy",
    "taps",
    "workers",
]


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name}" in text for name in VERBS)


@pytest.mark.parametrize("group", sorted({name.split()[0] for name in VERBS if " " in name}))
def test_the_help_of_a_group_describes_the_group(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([group, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[2] == GROUPS[group] != ABOUT
    assert all((f"  {name} " in text) == name.startswith(f"{group} ") for name in VERBS)


def test_the_options_of_pretrain_are_these(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["pretrain", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    listed = {word.strip("[],").removeprefix("--") for word in text.split() if word.startswith(("--", "[--"))}
    assert {word for word in listed if not word.startswith(("recipe.", "taps."))} == set(PRETRAIN)


@pytest.mark.parametrize(("command", "method"), [("pretrain", ["--method", "decon-sl"]), ("show", ["decon-sl"])])
def test_the_help_lists_the_recipe_of_a_method_that_is_named(
    command: str, method: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run([command, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: dovetail {command} ")
    assert "--recipe.alpha" not in text
    told = " ".join([command, "--help", *method[:-1]])
    assert f"`dovetail {told} METHOD` lists a method's." in " ".join(text.split())
    with pytest.raises(SystemExit):
        run([*told.split(), method[-1]])
    text = capsys.readouterr().out
    assert text.index("--max-steps") < text.index("--recipe.alpha")
    assert "--recipe.queue" not in text  # of another method
    assert "lists a method's" not in text


def keeping(verb: Verb, given: list[dict[str, Any]]) -> Callable[..., None]:
    """Return a command's function that only notes what it was called with."""

    @takes(options_class(verb.load()))
    def noted(options: Any) -> None:
        given.append({name: getattr(options, name) for name in options.named})

    return noted


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pretran"], "There is no command 'pretran'; did you mean 'pretrain'?"),
        (["show", "--run", "runs/a"], "There is no option '--run'; see --help."),
        (["finetune", "segment", "--image-size", "64"], "no option '--image-size'; did you mean '--crop-size'?"),
        (["finetune", "detect", "--crop-size", "64"], "no option '--crop-size'; did you mean '--image-size'?"),
        (["pretrain", "--steps", "64"], "no option '--steps'; did you mean '--max-steps'?"),
        (["finetune", "classify", "--learning-rate=1"], "no option '--learning-rate=1'; did you mean '--lr'?"),
        (["pretrain", "--epohs", "3"], "There is no option '--epohs'; did you mean '--epochs'?"),
        (["pretrain", "--method", "decon-sk"], "There is no method 'decon-sk'; did you mean 'decon-sl'?"),
        (["pretrain", "--recipe.alhpa", "0.3"], "did you mean '--recipe.alpha'?"),
        (
            ["pretrain", "--method", "densecl", "--recipe.prototypes=9"],
            "The method has no option '--recipe.prototypes=9'; it is an option of slotcon, dino, ibot, ….",
        ),
        (["pretrain", "--recipe.alpha", "half"], "alpha"),
        (
            ["pretrain", "--init", "imagnet"],
            "There is no file or folder 'imagnet' (--init); did you mean 'imagenet'?",
        ),
        (["evaluate", "dense", "--init", "ImageNet"], "did you mean 'imagenet'?"),
        (["try", "--init", "randon"], "did you mean 'random'?"),
        (["pretrain", "--out", "x"], "--data is missing; specify a folder of images."),
        (["pretrain", "--data", ".", "--out", "y"], "--model is missing"),
        (["pretrain", "--data", ".", "--model", "m"], "--out is missing; specify a run folder."),
        (["pretrain", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["pretrain", "--config"], "--config expects a value; see --help."),
        (["pretrain", "--config", "--out", "x"], "--config expects a value; see --help."),
        (["show", "--model", "timm/test_resnet", "slotkon"], "did you mean 'slotcon'?"),
        (["show", "slotkon"], "did you mean 'slotcon'?"),
        (["export", "--run", "nowhere", "--to", "x.safetensors"], "nowhere"),
    ],
)
def test_mistakes_get_one_sentence_and_exit_code_2(
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.startswith("dovetail: ")
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err


def test_a_mapping_in_place_of_a_list_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("loggers: {wandb: 1}\n")
    assert run(["pretrain", "--config", str(config)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_show_prints_terms_and_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "decon-sl", "--model", "timm/test_resnet+fpn", "--recipe.alpha", "0.25"]) == 0
    text = capsys.readouterr().out
    assert "decoder_p2" in text
    assert "0.75" in text
    assert "prototypes=256" in text


def test_show_takes_options_before_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--recipe.prototypes", "9", "--model=timm/test_resnet+fpn", "--recipe.hidden", "32"]
    assert run(["show", *options, "slotcon"]) == 0
    text = capsys.readouterr().out
    assert "slotcon on timm/test_resnet+fpn" in text
    assert "prototypes=9" in text
    assert "decoder_p2" not in text


def test_options_count_that_name_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[dict[str, Any]] = []
    noting = keeping(VERBS["pretrain"], given)
    monkeypatch.setattr(Verb, "load", lambda *_: noting)
    monkeypatch.setattr(Verb, "check_early", lambda *_: None)  # these options are not those of a whole run
    config = tmp_path / "config.yaml"
    config.write_text(
        "method: slotcon\nseed: 0\nimage_size: 96\nrecipe: {prototypes: 9, hidden: 4096, image_size: 96}\n"
    )
    command = "pretrain --method slotcon --recipe.prototypes 256 --recipe.warmup-epochs=5"
    assert run(command.split()) == run(["pretrain", "--config", str(config)]) == run(["pretrain"]) == 0
    assert run(["pretrain", "--config", str(config), "--image-size", "64"]) == 0
    whole = {"prototypes": 9, "hidden": 4096, "image_size": 96}
    assert run(["pretrain", "--config", str(config), "--preset", "paper"]) == 0
    assert given.pop()["recipe"] == whole
    assert given == [
        {"method": "slotcon", "recipe": {"prototypes": 256, "warmup_epochs": 5.0}},
        {"method": "slotcon", "seed": 0, "image_size": 96, "recipe": {"prototypes": 9, "image_size": 96}},
        {},
        {"method": "slotcon", "seed": 0, "image_size": 64, "recipe": {"prototypes": 9}},  # beside a file it counts
    ]


@pytest.mark.parametrize("name", VERBS)
def test_options_that_are_not_specified_have_the_defaults_of_the_function(name: str) -> None:
    kind = VERBS[name].options()
    parsed = parser_of(name, []).get_defaults()
    switches = [option for option in option_infos(kind) if isinstance(kind.default_of(option), bool)]
    assert {option: parsed[option] for option in switches} == {option: kind.default_of(option) for option in switches}


@pytest.mark.parametrize(("typed", "wanted"), [([], {}), (["--dynamic", "false"], {"dynamic": False})])
def test_a_switch_that_is_on_by_default_is_switched_off_by_its_value(
    typed: list[str], wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[dict[str, Any]] = []
    noting = keeping(VERBS["export"], given)
    monkeypatch.setattr(Verb, "load", lambda *_: noting)
    (tmp_path / "run").mkdir()
    assert run(["export", "--run", str(tmp_path / "run"), "--to", "a.onnx", "--format", "onnx", *typed]) == 0
    assert {name: value for name, value in given[0].items() if name == "dynamic"} == wanted


def test_methods_and_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods"]) == run(["models", "smp/unet/resnet*"]) == 0
    text = capsys.readouterr().out
    assert "slotcon" in text
    assert run(["show"]) == run(["show", "dino"]) == 0
    assumed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Assuming the model")]
    models = ("timm/resnet50+fpn", "timm/vit_small_patch16_224+fpn")
    assert assumed == [f"Assuming the model {model}, because --model is not specified." for model in models]
    assert run(["show", "slotcon", "--model", "timm/test_resnet"]) == 0
    assert "Assuming the model" not in capsys.readouterr().out
    assert "smp/unet/resnet50\n" in text
    assert "smp/fpn" not in text
    assert "Default (--method auto): encoder-targets" in text
    assert "decon-ml-densecl" in text


def test_models_are_summed_up_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models"]) == 0
    assert len(capsys.readouterr().out.splitlines()) < 10
    assert run(["models", "--library", "torchvision"]) == run(["models", "resnet50", "--decoder"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "torchvision/fcn_resnet50" in lines
    assert "smp/unet/resnet50" in lines
    assert "timm/resnet50" not in lines
    assert run(["models", "smp/fpn/*lite0*"]) == 0
    assert "smp/fpn/tu-tf_efficientnet_lite0" in capsys.readouterr().out.splitlines()
    assert run(["models", "smp/unet/resnett50"]) == 2
    assert "No model matches 'smp/unet/resnett50'; did you mean 'smp/unet/resnet50'?" in capsys.readouterr().err


def test_show_prints_what_a_run_takes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["show", "--model", "timm/test_resnet+fpn", "--accelerator", "cpu", "--init", "imagenet"]
    assert run(command) == 0
    text = capsys.readouterr().out
    assert "Method encoder-targets, because" in text
    assert "128 px" in text
    assert "max_steps              480" in text
    assert run(["show", "decon-sl", "--model", "timm/test_resnet+fpn", "--preset", "small"]) == 0
    assert "prototypes=64" in capsys.readouterr().out


def test_printed_config_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["pretrain", "--method", "decon-ml", "--max-steps", "7", "--recipe.alpha", "0.25", "--print-config"])
    content = yaml.safe_load(capsys.readouterr().out)
    assert content["max_steps"] == 7
    assert content["recipe"]["alpha"] == 0.25
    assert content["recipe"]["levels"] == "all"


@pytest.mark.parametrize(
    ("interrupt", "told"),
    [
        (KeyboardInterrupt(), "Stopped by Ctrl-C (SIGINT)."),
        (KeyboardInterrupt("Stopped at once after step 3."), "Stopped at once after step 3."),
    ],
)
def test_ctrl_c_ends_with_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], interrupt: KeyboardInterrupt, told: str
) -> None:
    def stopped(*_: object) -> int:
        raise interrupt

    monkeypatch.setattr("dovetail.cli.call", stopped)
    assert run(["methods"]) == 130
    assert capsys.readouterr().err == f"dovetail: {told}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("finetune segment --workers many", "--workers is many; it must be a whole number or auto."),
        ("finetune segment --decoder unet", "--decoder is unet; it must be auto, fcn, fpn or upernet."),
        ("finetune segment --output-stride 4", "--output-stride is 4; it must be auto, 8, 16 or 32."),
        (
            "finetune segment --crop-size wide",
            "crop_size is 'wide'; it must be a whole number of pixels, or a height and a width such as 64x128.",
        ),
        ("finetune segment --crop-size", "--crop-size expects a value; see --help."),
        ("finetune classify --lr fast", "--lr is fast; it must be a number."),
        ("evaluate knn --k 5 ten", "--k is ten; it must be a whole number."),
        ("pretrain --recipe.alpha much", "--recipe.alpha is much; it must be a number."),
    ],
)
def test_values_of_another_kind_are_told_in_words(
    arguments: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments.split()) == 2
    assert capsys.readouterr().err == f"dovetail: {sentence}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_abbreviated_options_are_refused_with_their_whole_name(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    known = option_infos(VERBS[verb].options())
    options = {f"--{name.replace('_', '-')}" for name, info in known.items() if not info.python}
    positional = {f"--{name}" for name in positional_in(VERBS[verb].options())}
    for option in sorted(options - {"--recipe"} - positional):
        short = option[:-1]
        if len(short) < 4 or short in options or same_meaning(short[2:], known) is not None:
            continue
        assert run([*verb.split(), short, "1"]) == 2
        told = capsys.readouterr().err
        longer = [one for one in options if one.startswith(short)]
        assert told.startswith(f"dovetail: There is no option {short!r}; did you mean '--"), told
        assert told.count("\n") == 1
        assert len(longer) > 1 or f"did you mean {option!r}?" in told


def test_abbreviated_options_of_recipes_and_values_after_a_sign_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["pretrain", "--method", "slotcon", "--recipe.proto", "9"]) == 2
    assert "There is no option '--recipe.proto'; did you mean '--recipe.prototypes'?" in capsys.readouterr().err
    assert run(["pretrain", "--max-step=3"]) == 2
    assert "There is no option '--max-step=3'; did you mean '--max-steps'?" in capsys.readouterr().err
