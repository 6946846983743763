"""`python -m benchmarks.demo.study --out study-out`: what makes the demo's pre-training learn, and its decoder help.

Every pre-training below is probed with frozen features: a ridge regression from 40 labelled mosaics to classes, on each
of several maps brought to 16 x 16 cells, scored on 40 validation mosaics. `--finetune` fine-tunes as the demo does,
from the encoder alone and from encoder and decoder, and scores on 64 validation mosaics. No test mosaic is read.
Finished pre-trainings are kept in `out`. `benchmarks/results/demo.md` tells what was found.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.demo.mosaics import Split, write_mosaics
from benchmarks.demo.settings import FINETUNING, HEADS, DemoSettings
from benchmarks.demo.trial import CLASSES, Arm, Pretraining, measure, read_split
from dovetail.transfer.labelled import InMemory
from dovetail.transfer.segment import autocast, normalised

MAPS = ("encoder.model.layer2", "encoder.model.layer3", "encoder.model.layer4", "decoder.blocks.2", "decoder.blocks.4")
CELLS = 16  # on a side of a mosaic
RIDGE = 30.0
SEEDS = (0, 1, 2)
PROBED = 40  # mosaics, labelled and of validation

P2: Mapping[str, Any] = {"levels": "p2", "decoder_grid": 16}
SLOTS: Mapping[str, Any] = {
    "hidden": 256,
    "dim": 128,
    "prototypes": 32,
    "momentum": 0.95,
    "teacher_temperature": 0.04,
    "base_lr": 24.0,
    "bias_lr": 0.24,
    "warmup_epochs": 1.0,
    "min_scale": 0.4,
    "blur_px": 0.6,
}
PRETRAININGS: Mapping[str, Pretraining] = {
    "densecl": Pretraining("densecl", HEADS, 30),
    "decon over densecl": Pretraining("decon-sl-densecl", {**HEADS, **P2}, 30),
    "decon over densecl, 20 epochs": Pretraining("decon-sl-densecl", {**HEADS, **P2}, 20),
    "decon over densecl, base_lr 1": Pretraining("decon-sl-densecl", {**HEADS, **P2, "base_lr": 1.0}, 30),
    "slotcon": Pretraining("slotcon", SLOTS, 20),
    "decon over slotcon": Pretraining("decon-sl", {**SLOTS, **P2}, 20),
    "decon over slotcon, grid 8": Pretraining("decon-sl", {**SLOTS, **P2, "decoder_grid": 8}, 20),
    "decon over slotcon, grid 8, alpha 0.25": Pretraining(
        "decon-sl", {**SLOTS, **P2, "decoder_grid": 8, "alpha": 0.25}, 20
    ),
}


def main() -> None:
    """Probe, and fine-tune if asked, the pre-trainings named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo.study", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("study-out"), help="folder for everything it makes")
    parser.add_argument("--runs", nargs="+", choices=PRETRAININGS, default=list(PRETRAININGS), help="which ones")
    parser.add_argument("--finetune", action="store_true", help="fine-tune too, as the demo does, with 3 seeds")
    arguments = parser.parse_args()
    settings = DemoSettings()
    pieces = write_mosaics(arguments.out / "photographs", settings.pieces, {"unlabelled": settings.unlabelled})
    counts: dict[Split, int] = {"labelled": max(PROBED, max(settings.labels) * len(SEEDS)), "validation": 64}
    folders = write_mosaics(arguments.out / "mosaics", settings.mosaics, counts)
    labelled, validation = read_split(folders["labelled"]), read_split(folders["validation"])
    arms = [Arm("untrained")]
    for name in arguments.runs:
        run = PRETRAININGS[name].run(pieces["unlabelled"], arguments.out / name.replace(", ", "-").replace(" ", "-"))
        arms += [Arm(f"{name}, exported", run), Arm(f"{name}, student", student_of(run))]
    print(f"\n{'frozen features, % of cells right':<48}" + "".join(f"{name:>18}" for name in MAPS))
    for arm in arms:
        print(f"{arm.name:<48}" + "".join(f"{score:>18.1f}" for score in probe(arm.model(0), labelled, validation)))
    for arm in arms if arguments.finetune else []:
        for part in ("encoder", "all") if arm.run else ("all",):
            start = Arm(arm.name, arm.run, part)
            for labels in settings.labels:
                outcome = measure(start, labelled, validation, labels=labels, options=FINETUNING, seeds=SEEDS)
                scores = f"{outcome.mean:.1f} ± {outcome.deviation:.1f} mIoU, n = {len(SEEDS)}"
                print(f"{arm.name}, {part}, {labels} labels: {scores}", flush=True)


def student_of(run: Path) -> Path:
    """Return a folder with the student's weights of a run that exported its teacher's."""
    folder = run / "student"
    if not folder.exists():
        state = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["learner"]
        prefix = "student.network.model."
        tensors = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        folder.mkdir()
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
        shutil.copy(run / "exported" / "model.json", folder / "model.json")
    return folder


def probe(model: nn.Module, labelled: InMemory, validation: InMemory) -> list[float]:
    """Return the share of validation cells, in per cent, that a ridge regression on each of `MAPS` puts right."""
    (train, train_labels), (held_out, truth) = features_of(model, labelled), features_of(model, validation)
    scores = []
    for known, unknown in zip(train, held_out, strict=True):
        mean, deviation = known.mean(0), known.std(0) + 1e-6
        inputs, queries = (with_bias((part - mean) / deviation) for part in (known, unknown))
        gram = inputs.T @ inputs + RIDGE * torch.eye(inputs.shape[1])
        weights = torch.linalg.solve(gram, inputs.T @ F.one_hot(train_labels, CLASSES).float())
        scores.append(100 * float(((queries @ weights).argmax(1) == truth).float().mean()))
    return scores


@torch.no_grad()
def features_of(model: nn.Module, data: InMemory) -> tuple[list[Tensor], Tensor]:
    """Return each of `MAPS` as rows, one for each cell of all mosaics, and the cells' classes.

    BatchNorm takes the statistics of these mosaics, as an untrained network has none.
    """
    items = [data[index] for index in range(min(PROBED, len(data)))]
    kept: dict[str, Tensor] = {}
    handles = [model.get_submodule(name).register_forward_hook(keep_as(name, kept)) for name in MAPS]
    images = torch.stack([item.image for item in items])
    with autocast(FINETUNING, "cpu"):
        model.train()(normalised(images, FINETUNING))
    for handle in handles:
        handle.remove()
    step = items[0].mask.shape[0] // CELLS
    labels = torch.stack([item.mask[step // 2 :: step, step // 2 :: step] for item in items])
    return [rows(kept[name]) for name in MAPS], labels.flatten()


def keep_as(name: str, kept: dict[str, Tensor]) -> Any:
    """Return a hook that keeps a module's output under `name`."""

    def hook(module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> None:
        kept[name] = output

    return hook


def rows(maps: Tensor) -> Tensor:
    """Return maps [B, C, h, w] as [B * cells, C], averaged or interpolated to the cells."""
    mode = "area" if maps.shape[-1] > CELLS else "bilinear"
    return F.interpolate(maps.float(), (CELLS, CELLS), mode=mode).permute(0, 2, 3, 1).flatten(0, 2)


def with_bias(inputs: Tensor) -> Tensor:
    """Return rows with a column of ones."""
    return torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)


if __name__ == "__main__":
    main()
