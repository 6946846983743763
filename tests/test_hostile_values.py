"""Odd values in files and on the command line, deep nesting, aliases without end, letters that a terminal acts on: each
gets one sentence, soon, and takes no memory first.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import dovetail
from dovetail.cli import main
from dovetail.cli import run as run_command
from dovetail.downstream.finished import read_task
from dovetail.downstream.labels.coco import CocoSet
from dovetail.downstream.table.results import Row, one_value, print_table, read_results
from dovetail.errors import DovetailError, printable
from dovetail.files.options_file import MAX_VALUES, read_options_file
from dovetail.train.checksummed import write_sealed

OPTIONS: dict[str, Any] = {
    "model": "timm/test_resnet+fpn(channels=16)",
    "image_size": 64,
    "batch_size": 4,
    "max_steps": 1,
    "workers": 0,
    "precision": "32-true",
    "accelerator": "cpu",
    "report_every_minutes": 0.0,
    "recipe": {"hidden": 16, "dim": 8, "prototypes": 6, "decoder_grid": 8},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests change copies of it."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    dovetail.pretrain(data=photos, out=out, **OPTIONS)
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def one_sentence(shown: str) -> str:
    """Return what a command said, which has to be one sentence."""
    assert "Traceback" not in shown
    last = shown.splitlines()[-1]
    assert last.startswith("dovetail: ")
    assert len(last) < 2000
    return last


ODD = [
    ("data", 3), ("data", ["a", "b"]), ("data", {"a": 1}), ("model", 7), ("model", ["timm/resnet18"]), ("method", 3),
    ("method", ["dino"]), ("method", "dion"), ("preset", "huge"), ("recipe", 3), ("recipe", ["dim"]),
    ("recipe", {"dim": "wide"}), ("recipe", {"no_such": 1}), ("recipe", {"dim": 10**10}), ("epochs", -1),
    ("epochs", "many"), ("max_steps", 0), ("max_steps", 1.5), ("batch_size", 0), ("batch_size", 10**9),
    ("batch_size", "large"), ("lr", "fast"), ("lr", -1.0), ("lr", float("nan")), ("lr", float("inf")),
    ("image_size", -32), ("image_size", 10**6), ("image_size", "64px"), ("in_channels", 10**6), ("seed", 2**64),
    ("seed", -1), ("seed", "x"), ("accelerator", "tpu"), ("precision", "16"), ("devices", -1), ("workers", -1),
    ("workers", 10**9), ("no_such_option", 1), ("drop_path", 2.0), ("init", 5), ("save_every_minutes", "soon"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), ODD)
def test_an_odd_value_in_a_runs_config_gets_a_sentence(
    copied: Path, name: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = yaml.safe_load((copied / "config.yaml").read_text())
    (copied / "config.yaml").write_text(yaml.safe_dump(saved | {name: value}))
    assert run_command(["pretrain", "--out", str(copied), "--resume"]) == 2
    one_sentence(capsys.readouterr().err)


NUMBERS = [
    "--image-size -32", "--image-size 1000000", "--lr 1e308", "--seed 18446744073709551616", "--in-channels 1000000",
    "--recipe.dim 10000000000", "--recipe.min-scale 2", "--recipe.momentum 2", "--recipe.blur-px 1e9", "--workers -1",
    "--recipe.queue 100000000000 --method densecl", "--recipe.image-size 1000000", "--batch-size 1000000000",
    "--accumulate 0", "--max-steps 0", "--epochs 0", "--log-every-steps 0", "--devices 0", "--recipe.alpha nan",
    "--recipe.lateral-dropout 2", "--save-every-minutes nan",
]  # fmt: skip


@pytest.mark.parametrize("options", NUMBERS)
def test_a_number_out_of_range_gets_a_sentence_before_memory_is_taken(
    photos: Path, tmp_path: Path, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options.split()
    plain = {name: value for name, value in OPTIONS.items() if name not in ("recipe", *given[0][2:].split("-"))}
    command = [f"--{name.replace('_', '-')}={value}" for name, value in plain.items()]
    assert run_command(["pretrain", "--data", str(photos), "--out", str(tmp_path / "run"), *command, *given]) == 2
    shown = one_sentence(capsys.readouterr().err)
    assert given[0].removeprefix("--").removeprefix("recipe.").replace("-", "_") in shown.replace("-", "_")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "text", ["[" * 20_000, "{a: " * 5_000, "- " * 20_000, "a: &a [*a]", "&a {b: *a}", f"a: '{'[' * 50_000}'"]
)
def test_nesting_without_end_is_no_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "deep.yaml").write_text(text)
    with pytest.raises(DovetailError, match="cannot be read"):
        read_options_file(tmp_path / "deep.yaml")


def bomb(depth: int = 9) -> str:
    """Return aliases of aliases that stand for a billion values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, depth + 1)]
    return "\n".join(lines)


def test_aliases_of_aliases_are_counted_before_they_are_written_out(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, command in (
        (tmp_path / "bomb.yaml", ["--config", str(tmp_path / "bomb.yaml"), "--out", str(tmp_path / "new")]),
        (copied / "config.yaml", ["--out", str(copied), "--resume"]),
    ):
        place.write_text(bomb())
        assert run_command(["pretrain", *command]) == 2
        assert f"expands to more than {MAX_VALUES:,} values" in one_sentence(capsys.readouterr().err)
    (tmp_path / "plain.yaml").write_text("a: &a {b: 1}\nc: *a\n")
    assert read_options_file(tmp_path / "plain.yaml") == {"a": {"b": 1}, "c": {"b": 1}}
    (tmp_path / "long.yaml").write_bytes(b"a: 1\n" * 300_000)
    with pytest.raises(DovetailError, match="more than 1,048,576 bytes"):
        read_options_file(tmp_path / "long.yaml")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "[1]", "null", "3", '{"rows": 3}', "{}", '"x"'])
def test_files_of_results_and_tasks_are_read_or_get_a_sentence(tmp_path: Path, content: str) -> None:
    for name in ("results.json", "task.json", "coco.json"):
        (tmp_path / name).write_text(content)
    for read in (read_results, read_task, lambda folder: CocoSet.open(folder / "coco.json")):
        with pytest.raises(DovetailError) as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.jpg", "a/../../secret.jpg", "C:\\secret.jpg", "..\\x.jpg"])
def test_a_coco_file_names_images_in_its_folder_alone(tmp_path: Path, name: str) -> None:
    content = {
        "images": [{"id": 1, "file_name": name, "width": 8, "height": 8}],
        "categories": [{"id": 1, "name": "one"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    with pytest.raises(DovetailError, match="names an image outside its folder"):
        CocoSet.open(tmp_path / "coco.json")


@pytest.mark.parametrize("counts", [[10**12], "0" * 40])
def test_run_lengths_take_no_memory_that_no_image_has(tmp_path: Path, counts: Any) -> None:
    side = 1_000_000
    mask = {"size": [side, side], "counts": counts}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": side, "height": side}],
        "categories": [{"id": 1, "name": "one"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": mask, "iscrowd": 1}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    with pytest.raises(DovetailError):
        CocoSet.open(tmp_path / "coco.json")


STATES: list[dict[str, Any]] = [
    {}, {"format": 99}, {"step": -5}, {"step": 10**9}, {"settings": {}}, {"settings": {"seed": 0}}, {"learner": {}},
    {"optimiser": {}}, {"optimiser": {"state": 3}}, {"format": "1"}, {"settings": 3}, {"skipped_steps": "x"},
]  # fmt: skip


@pytest.mark.parametrize("changed", STATES)
def test_a_resealed_checkpoint_gets_a_sentence(
    copied: Path, changed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody who writes a checkpoint writes its checksum too."""
    from dovetail.train.checkpoints import read

    last = copied / "checkpoints" / "last.ckpt"
    state = read(last) | {"step": 0} | changed if changed else {}
    (copied / "checkpoints" / "previous.ckpt").unlink(missing_ok=True)
    write_sealed(state, last)
    code = run_command(["pretrain", "--out", str(copied), "--resume"])
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert code == 0 or one_sentence(shown)


HOSTILE = "\x1b]0;owned\x07\x1b[2J[bold red]class[/bold red]\u202e"


def test_no_name_reaches_the_terminal_as_a_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    print_table(f"task {HOSTILE}", [Row({"start": HOSTILE, HOSTILE: "x"}, {HOSTILE: one_value(0.5)})])
    assert (
        run_command(["pretrain", "--data", f"{tmp_path}/{HOSTILE}", "--model", "m", "--out", str(tmp_path / "o")]) == 2
    )
    assert run_command(["compare", f"{tmp_path}/{HOSTILE}"]) == 2
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
    assert "[bold red]" in shown.out
    assert printable(HOSTILE) == "\\x1b]0;owned\\x07\\x1b[2J[bold red]class[/bold red]\\u202e"
    assert printable("Grüße, 写真.jpg\n") == "Grüße, 写真.jpg\n"


@pytest.fixture
def odd_folder(tmp_path: Path) -> bytes:
    """A folder whose name has letters of several languages, and is no text in any encoding."""
    folder = os.fsencode(tmp_path) + b"/gr\xfc\xdfe-\xe5\x86\x99"
    Path(os.fsdecode(folder)).mkdir()
    return folder


def test_a_terminal_that_lacks_letters_is_told_all_the_same(
    odd_folder: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(terminal, encoding="ascii", write_through=True))
    folder, out = os.fsdecode(odd_folder), str(tmp_path / "o")
    assert run_command(["pretrain", "--model", "timm/test_resnet", "--out", out, "--data", folder]) == 2
    assert terminal.getvalue().startswith(b"dovetail: ")
    assert b"contains no files" in terminal.getvalue()
    assert b"gr\\udcfc\\udcdfe-" in terminal.getvalue()


def test_an_old_locale_is_told_all_the_same(odd_folder: bytes) -> None:
    """In a process of its own, which begins with it."""
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    command = [sys.executable, "-m", "dovetail.cli", "pretrain", b"--config", odd_folder + b"/\xe5.yaml"]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert done.stderr.startswith(b"dovetail: ")
    assert b"gr\\udcfc" in done.stderr


def test_a_second_ctrl_c_ends_with_130_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*_: object) -> int:
        raise KeyboardInterrupt

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            raise KeyboardInterrupt

    monkeypatch.setattr("dovetail.cli.call", stopped)
    before = signal.getsignal(signal.SIGINT)
    try:
        monkeypatch.setattr(sys, "stderr", Slow())
        with pytest.raises(SystemExit) as ended:
            main(["methods"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 0.01, 0.2])
def test_two_ctrl_c_end_a_run_with_130(photos: Path, tmp_path: Path, pause: float) -> None:
    out = tmp_path / "run"
    options = [
        f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items() if name not in ("recipe", "max_steps")
    ]
    command = [sys.executable, "-m", "dovetail.cli", "pretrain", "--data", str(photos), "--out", str(out), *options]
    with subprocess.Popen(
        [*command, "--max-steps", "100000", "--log-every-steps", "1"], stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        metrics = out / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.05)
        for _ in range(2):
            os.kill(process.pid, signal.SIGINT)
            time.sleep(pause)
        shown = process.communicate(timeout=1500)[1]
    assert process.returncode == 130, shown
