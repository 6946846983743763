"""Every shell block of README and docs is run: its commands in order, on small data, with small stand-ins for models.

What takes a cluster, a download or a key stands in `ELSEWHERE` with the reason.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dovetail.cli import run
from dovetail.recipes.table import options_of
from tests.downstream.coco_files import write_coco
from tests.downstream.dense.scenes import moving_square
from tests.downstream.labels.test_readers import voc
from tests.downstream.pictures import class_folder
from tests.test_docs import FENCE, PAGES, QUICK, ROOT, SMALL, STAND_INS, blocks, name_of

pytestmark = pytest.mark.slow

# A pattern of a line that is not run here, and why.
ELSEWHERE = {
    r"^torchrun --nnodes": "several machines; tests/train/test_ranks.py starts processes",
    r"^#": "a remark, or SLURM's settings",
    r"s3://|hf:": "another machine",
    r"^(python3 -m venv|\.venv/bin/pip|pip install|\. \.venv)": "an installation, as make does it",
    r"^git clone": "an installation",
    r"pre-commit install": "it would change the repository",
    r"yolo:build": "a library that is not installed; tests/run/test_outside_models.py",
    r"epoch-0010\.ckpt": "a run of ten epochs; tests/run/test_export_checkpoint.py",
}
# Words to replace: downloads, machines, and amounts of work.
REPLACED = {
    **STAND_INS,
    "vit_base_patch16_224": "test_vit",
    "vit_large_patch16_224": "test_vit",
    "/scratch/photos": "photos",
    " --init imagenet": "",
    " --start imagenet": " --start random",
    " --budget 30min": "",
    " --budget 10min": "",
    " --preset continue": "",  # it needs trained weights, which the stand-in has not
    " --budget 2h": " --budget 3min --model timm/test_resnet+fpn --init random --image-size 32 --seeds 1",
    " --loggers mlflow": "",
    "--images-per-shard 5000": "--images-per-shard 4",
    "shard-{000000..000147}": "shard-{000000..000001}",
    "recipe.alpha=0,0.25,0.5,0.75 --seeds 3": "recipe.alpha=0,0.5 --seeds 1",
}
COUNTED = r" --(devices|num-nodes|workers|max-steps|batch-size|image-size|accumulate|epochs|seeds)[ =]\S+"
FINETUNE = {
    "finetune segment": "--steps 2 --batch-size 2 --crop-size 64 --workers 0 --accelerator cpu",
    "finetune detect": "--steps 1 --batch-size 2 --image-size 64 --workers 0 --accelerator cpu",
    "finetune classify": "--epochs 1 --batch-size 8 --image-size 64 --workers 0 --accelerator cpu",
    "evaluate linear": "--epochs 2 --image-size 64 --workers 0 --accelerator cpu",
    "evaluate dense": "--steps 5 --image-size 64 --workers 0 --accelerator cpu",
    "evaluate knn": "--image-size 64 --workers 0 --accelerator cpu",
}
BEFORE = (
    "pretrain --data photos/ --model smp/unet/resnet50 --method decon-sl --out runs/wheat",
    "pretrain --data photos/ --model timm/resnet50+fpn --method decon-sl --out runs/fpn",
    "pretrain --data photos/ --model timm/vit_small_patch16_224 --method adclr --out runs/vit",
)


def shell_lines(page: Path) -> list[str]:
    """Return the lines of a page's shell blocks, and of blocks by indentation; `\\` joins lines."""
    text = page.read_text(encoding="utf-8")
    indented = "\n".join(
        line[4:] for line in FENCE.sub("", text).splitlines() if re.match(r" {4}(dovetail|make)\b", line)
    )
    content = "\n".join([*(content for _, content in blocks(page, "sh")), indented]).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in content.splitlines() if line.strip()]


def shortened(command: str) -> str:
    """Return a command with small stand-ins, and with what makes it quick at its end."""
    for long, short in REPLACED.items():
        command = command.replace(long, short)
    name = " ".join(command.split()[:2])
    if name in FINETUNE:
        return f"{re.sub(COUNTED, '', command)} {FINETUNE[name]}"
    if not command.startswith("pretrain ") or "--help" in command:
        return command
    command = re.sub(COUNTED, "", command)
    if "--resume" in command:
        return f"{command} --accelerator cpu --workers 0"
    values = QUICK | {"report_every_minutes": 5}
    if "--profile" in command:  # of which the first three steps are no part
        command, values = re.sub(r"--profile \d+", "--profile 2", command), values | {"max_steps": 5}
    config = re.search(r"--config (\S+)", command)
    given = yaml.safe_load((ROOT / config.group(1)).read_text()) if config is not None else {}
    method = re.search(r"--method (\S+)", command)
    known = options_of(method.group(1) if method else given.get("method", "decon-sl"))
    quick = [f"--{name.replace('_', '-')} {value}" for name, value in values.items()]
    quick += [f"--recipe.{name} {value}" for name, value in SMALL.items() if name in known]
    if config is not None:
        model = functools.reduce(lambda words, pair: words.replace(*pair), STAND_INS.items(), given["model"])
        quick += ["--precision 32-true --devices 1 --num-nodes 1 --accumulate 1", f"--model {model}"]
    return " ".join([command, *quick])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all data and runs that pages name."""
    folder = tmp_path_factory.mktemp("commands")
    rng = np.random.default_rng(0)
    for index in range(8):
        for kind in ("photos", "labelled/images"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
            coarse.resize((80, 72), Image.Resampling.BICUBIC).save(folder / kind / f"{index}.jpg")
        (folder / "labelled/masks").mkdir(exist_ok=True)
        labels = rng.integers(0, 3, (5, 5)).astype(np.uint8)
        Image.fromarray(labels).resize((80, 72), Image.Resampling.NEAREST).save(folder / f"labelled/masks/{index}.png")
    (folder / "tiles").mkdir()
    for index in range(8):
        np.save(folder / f"tiles/{index}.npy", rng.integers(0, 4096, (72, 80, 12), dtype=np.uint16))
    (folder / "masks").symlink_to(folder / "labelled/masks")  # for the images of the same names
    write_masks_with_gaps(folder)
    voc(folder)
    write_coco(folder / "coco")
    class_folder(folder / "flowers", train=4, val=2)
    moving_square(folder / "sequences", frames=3)
    (folder / "imagenet").mkdir()
    (folder / "imagenet/train").symlink_to(folder / "photos")
    (folder / "images.txt").write_text("\n".join(map(str, sorted((folder / "photos").iterdir()))))
    (folder / "recipes").symlink_to(ROOT / "recipes")
    base = {"data": "photos", "model": "timm/test_resnet+fpn", "method": "decon-sl", "recipe": SMALL} | QUICK
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    return folder


def write_masks_with_gaps(folder: Path) -> None:
    """Write `fields` with masks of 0, 128 and 255, and `streets` with masks in colour and a table of the colours."""
    colours = np.array([(128, 64, 128), (0, 128, 0), (0, 0, 0)], np.uint8)
    for name in ("fields", "streets"):
        shutil.copytree(folder / "labelled", folder / name)
        for path in (folder / name / "masks").iterdir():
            labels = np.asarray(Image.open(path))
            Image.fromarray(colours[labels] if name == "streets" else np.array([0, 128, 255], np.uint8)[labels]).save(
                path
            )
    rows = [f"{name},{r},{g},{b}" for name, (r, g, b) in zip(("road", "tree", "sky"), colours.tolist(), strict=True)]
    (folder / "streets/class_dict.csv").write_text("\n".join(["name,r,g,b", *rows]))


@pytest.fixture(scope="module")
def runs(data: Path) -> Path:
    """The folder of the runs that pages begin with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(data)
        for command in BEFORE:
            assert run(shlex.split(shortened(command))) == 0, command
    return data / "runs"


@pytest.mark.parametrize("page", [page for page in PAGES if shell_lines(page)], ids=name_of)
def test_shell_blocks_run(page: Path, data: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    for entry in data.iterdir():
        if entry.name != "runs":
            (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    for line in shell_lines(page):
        if not any(re.search(pattern, line) for pattern in ELSEWHERE):
            run_line(line.removeprefix("$ ").removeprefix("srun ").removeprefix(".venv/bin/"))


def run_line(line: str) -> None:
    """Run one line of a shell block here."""
    line = re.sub(r"^([A-Z_]+=\S+ )+", "", line)  # variables for the command alone
    words = shlex.split(line, comments=True)
    if words[0] == "make":  # its targets are long, and are run by those who change the code
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[:2] == ["python", "-m"]:
        run_module(shortened(line))
    else:
        assert words[0] == "dovetail", line
        run_command(shlex.join(words[1:]))


def run_command(command: str) -> None:
    """Run a command of this program; a run that is there already gives way to one that is made anew."""
    out = re.search(r"--out (\S+)", command)
    if command.startswith("pretrain ") and out is not None and "--resume" not in command:
        shutil.rmtree(out.group(1), ignore_errors=True)
    if "METHOD" in command:
        command = command.replace("METHOD", "slotcon")
    assert run(shlex.split(shortened(command))) == 0, command


def run_module(line: str) -> None:
    """Run `python -m` in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *shlex.split(line)[1:]], env=environment, check=True, capture_output=True)
