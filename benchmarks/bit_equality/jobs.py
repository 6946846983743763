"""The jobs: what is run on both trees, through the command line and the public functions of `dovetail` alone.

Pre-training starts from a seed on each tree. Everything after it starts from the run folders that the *first* tree
wrote, on both trees. So a difference in pre-training does not spread to the other jobs, and the second tree is shown
to read what the first one left.
"""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import torch

import dovetail
from benchmarks.bit_equality.manifest import (
    Manifest,
    file_manifest,
    folder_manifest,
    manifest_of,
    results_manifest,
    run_manifest,
)

RESNET, RESNET_FPN = "timm/test_resnet", "timm/test_resnet+fpn"
CONVNEXT, VIT, VIT_FPN = "timm/test_convnext", "timm/test_vit", "timm/test_vit+fpn"

# Every option that decides numbers and is the same for all jobs.
PRETRAIN = (
    *("--image-size", "64", "--in-channels", "3", "--drop-path", "0", "--epochs", "4", "--batch-size", "4"),
    *("--accumulate", "1", "--lr", "auto", "--seed", "0", "--skip-nonfinite-steps", "0"),
    *("--accelerator", "cpu", "--devices", "1", "--precision", "32-true", "--workers", "0"),
    *("--log-every-steps", "1", "--report-every-minutes", "0"),
)
MEASURE = ("--accelerator", "cpu", "--precision", "float32", "--workers", "0", "--seed", "0")

_IMAGE = {"hidden": 24, "dim": 8}
_SLOTS = {**_IMAGE, "prototypes": 6}
_QUEUE = {**_IMAGE, "queue": 16}
_TOKENS = {"hidden": 24, "bottleneck": 8, "prototypes": 6, "local_crops": 2, "local_size": 32}
_PATCHES = {**_TOKENS, "patch_prototypes": 6}
_DECODER = {"decoder_grid": 8}

# Of every family of methods: the model, and small sizes of heads.
METHODS: Mapping[str, tuple[str, Mapping[str, int]]] = {
    "slotcon": (RESNET, _SLOTS),
    "densecl": (RESNET, _QUEUE),
    "pixpro": (RESNET, _IMAGE),
    "simclr": (RESNET, _IMAGE),
    "moco-v2": (RESNET, _QUEUE),
    "moco-v3": (VIT, _IMAGE),
    "byol": (RESNET, _IMAGE),
    "simsiam": (RESNET, {**_IMAGE, "predictor_hidden": 16}),
    "barlow": (CONVNEXT, _IMAGE),
    "zerocl": (RESNET, _IMAGE),
    "vicreg": (RESNET, _IMAGE),
    "dino": (VIT, _TOKENS),
    "ibot": (VIT, _PATCHES),
    "selfpatch": (VIT, _PATCHES),
    "pqcl": (VIT, {**_PATCHES, "query_size": 32}),
    "adclr": (VIT, {**_TOKENS, "queries": 3}),
    "adclr-ibot": (VIT, {**_PATCHES, "queries": 3}),
    "decon-sl": (RESNET_FPN, {**_SLOTS, **_DECODER}),
    "decon-ml": (RESNET_FPN, {**_SLOTS, **_DECODER}),
    "decon-sl-densecl": (RESNET_FPN, {**_QUEUE, **_DECODER}),
    "decon-ml-pixpro": (RESNET_FPN, {**_IMAGE, **_DECODER}),
    "dino+decon-sl": (VIT_FPN, {**_TOKENS, **_DECODER, "decoder_prototypes": 6}),
    "adclr+decon-sl-densecl": (
        VIT_FPN,
        {**_TOKENS, **_DECODER, "queries": 3, "decoder_hidden": 24, "decoder_dim": 8, "decoder_queue": 16},
    ),
}


@dataclass(frozen=True)
class Place:
    """Where a job reads and writes.

    Attributes:
        inputs: Folder of the images.
        own: Folder of this tree's outputs.
        first: Folder of the first tree's outputs; the same as `own` on the first tree.
        preset: For every pre-training.
    """

    inputs: Path
    own: Path
    first: Path
    preset: str

    @property
    def is_first(self) -> bool:
        """Whether this is the first tree."""
        return self.own == self.first


@dataclass(frozen=True)
class Job:
    """What to compute, and the jobs whose folders it reads."""

    compute: Callable[[Place], Manifest]
    needs: tuple[str, ...] = ()


def command(*words: str | Path) -> None:
    """Do what `python -m dovetail.cli WORDS` does, in this process, which has imported torch once.

    Raises:
        RuntimeError: Where the command fails; its message is in the log.
    """
    before = sys.argv
    sys.argv = ["dovetail", *map(str, words)]
    try:
        runpy.run_module("dovetail.cli", run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"`dovetail {words[0]}` exits with {end.code}; see the log") from None
    finally:
        sys.argv = before


def pretrain(
    place: Place, *, job: str, method: str, model: str = "", steps: int = 3, extra: Sequence[str | Path] = ()
) -> Manifest:
    """Pre-train for some steps; the options in `extra` count more than those for all jobs."""
    usual, sizes = METHODS[method]
    words: list[str | Path] = ["--data", place.inputs / "images", "--out", place.own / job, *PRETRAIN]
    words += ["--model", model or usual, "--method", method, "--preset", place.preset, "--max-steps", str(steps)]
    for option, value in sizes.items():
        words += [f"--recipe.{option}", str(value)]
    command("pretrain", *words, *extra)
    found = run_manifest(place.own / job)
    if "--keep-every-epochs" not in extra:  # nothing reads them again, and they are most of the space
        shutil.rmtree(place.own / job / "checkpoints")
    return found


def from_exported(place: Place, *, job: str) -> Manifest:
    """Pre-train from the first tree's weights, with kNN on the way."""
    extra = ("--init", place.first / "pretrain/simclr", "--knn-data", place.inputs / "classes")
    return pretrain(place, job=job, method="simclr", extra=extra)


def from_shards(place: Place, *, job: str) -> Manifest:
    """Write the images as shards and pre-train on them."""
    shards = place.own / job / "shards"
    command("prepare", "--data", place.inputs / "images", "--shards", shards, "--seed", "0")
    run = f"{job}/run"
    return pretrain(place, job=run, method="simclr", extra=("--data", shards))


def resume(place: Place, *, method: str) -> Manifest:
    """Return, on the first tree, a run of four steps; on the other, that run gone on with from its second step.

    The first tree keeps its checkpoint after every epoch of two steps. A folder whose last checkpoint is that of the
    first epoch, and whose log goes further, is what a kill after that checkpoint leaves.
    """
    job = f"resume/{method}"
    if place.is_first:
        return pretrain(place, job=job, method=method, steps=4, extra=("--keep-every-epochs", "1"))
    run = place.own / job
    shutil.copytree(place.first / job, run)
    shutil.rmtree(run / "exported")
    kept = run / "checkpoints" / "epoch-0001.ckpt"
    shutil.copy(kept, run / "checkpoints" / "last.ckpt.copy")
    for file in (run / "checkpoints").glob("*.ckpt"):
        file.unlink()
    (run / "checkpoints" / "last.ckpt.copy").rename(run / "checkpoints" / "last.ckpt")
    command("pretrain", "--out", run, "--resume")
    return run_manifest(run)


def load(place: Place, *, run: str) -> Manifest:
    """Load the first tree's exported weights and this tree's own, as a new model and into one of other weights."""
    found: Manifest = {}
    for whose, folder in (("first", place.first / run), ("own", place.own / run)):
        model = dovetail.load(folder)
        found |= manifest_of(model.state_dict(), f"{whose}/load")
        with torch.no_grad():
            for value in model.state_dict().values():
                value.zero_()
        report = dovetail.load_into(model, folder)
        found |= manifest_of(model.state_dict(), f"{whose}/load_into")
        names = {"matched": report.matched, "missing": report.missing, "fresh": report.fresh}
        found |= manifest_of({what: sorted(some) for what, some in names.items()}, f"{whose}/report")
    return found


def export(place: Place, *, run: str, formats: Sequence[str], ending: str = "safetensors") -> Manifest:
    """Export the first tree's run in several formats."""
    found: Manifest = {}
    for format in formats:
        to = place.own / "export" / Path(run).name / f"{format}.{ending}"
        to.parent.mkdir(parents=True, exist_ok=True)
        command("export", "--run", place.first / run, "--to", to, "--format", format)
        found |= file_manifest(to)
    return found


def measure(place: Place, *, job: str, verb: Sequence[str], run: str, data: str, options: Sequence[str]) -> Manifest:
    """Fine-tune or evaluate the first tree's run."""
    out = place.own / job
    words = ("--run", place.first / run, "--data", place.inputs / data, "--out", out, *MEASURE, *options)
    command(*verb, *words)
    return results_manifest(out)


def embed(place: Place, *, job: str, run: str) -> Manifest:
    """Write one vector for each image."""
    out = place.own / job / "vectors.npy"
    out.parent.mkdir(parents=True, exist_ok=True)
    where = ("--run", place.first / run, "--data", place.inputs / "images", "--out", out)
    command("embed", *where, "--side-px", "64", "--batch-size", "4", "--accelerator", "cpu")
    return file_manifest(out)


def predict(place: Place, *, job: str, run: str) -> Manifest:
    """Predict with what the first tree fine-tuned."""
    out = place.own / job
    where = ("--run", place.first / run, "--data", place.inputs / "more", "--out", out)
    command("predict", *where, "--min-score", "0", "--accelerator", "cpu", "--precision", "float32", "--workers", "0")
    return folder_manifest(out)


def pretraining_jobs() -> dict[str, Job]:
    """Return every method on its network, then kinds of networks and options."""
    jobs = {
        name: Job(partial(pretrain, job=name, method=name.partition("/")[2]))
        for name in map("pretrain/{}".format, METHODS)
    }
    variants: dict[str, dict[str, object]] = {
        "accumulate": {"method": "simclr", "extra": ("--batch-size", "2", "--accumulate", "2")},
        "drop-path": {"method": "dino", "extra": ("--drop-path", "0.3", "--checkpoint-blocks")},
        "one-channel": {"method": "byol", "extra": ("--in-channels", "1")},
        "student": {"method": "decon-sl", "extra": ("--recipe.export", "student")},
        "lr": {"method": "decon-ml", "extra": ("--lr", "0.1")},
        "unet": {"method": "decon-ml", "model": "smp/unet/resnet18"},
        "resnet18-fpn": {"method": "decon-sl", "model": "timm/resnet18+fpn"},
        "resnet18-fcn": {"method": "decon-sl", "model": "timm/resnet18+fcn"},
        "retinanet": {"method": "decon-sl", "model": "torchvision/retinanet_resnet50_fpn", "steps": 1},
    }
    for variant, options in variants.items():
        name = f"variant/{variant}"
        jobs[name] = Job(partial(pretrain, job=name, **options))  # type: ignore[arg-type]
    jobs["variant/init-knn"] = Job(partial(from_exported, job="variant/init-knn"), ("pretrain/simclr",))
    jobs["variant/shards"] = Job(partial(from_shards, job="variant/shards"))
    return jobs


def later_jobs() -> dict[str, Job]:
    """Return what is done with the folders of the first tree's runs."""
    cnn, vit, unet, vit_fpn = "pretrain/decon-sl", "pretrain/dino", "variant/unet", "pretrain/adclr+decon-sl-densecl"
    resumes = ("moco-v2", "decon-ml", "adclr+decon-sl-densecl")
    jobs = {f"resume/{method}": Job(partial(resume, method=method)) for method in resumes}
    for run in (cnn, vit, unet, vit_fpn, "variant/resnet18-fcn", "variant/retinanet"):
        jobs[f"load/{run.partition('/')[2]}"] = Job(partial(load, run=run), (run,))
    names: dict[str, tuple[str, ...]] = {
        "resnet18-fpn": ("model", "encoder", "decoder", "timm", "torchvision", "detectron2", "mmseg"),
        "resnet18-fcn": ("decoder", "mmseg"),
        "retinanet": ("torchvision", "encoder"),
        "unet": ("smp", "torchvision"),
    }
    for variant, formats in names.items():
        run, ending = f"variant/{variant}", "pt" if variant == "unet" else "safetensors"
        jobs[f"export/{variant}"] = Job(partial(export, run=run, formats=formats, ending=ending), (run,))
    for name, (verb, run, data, options) in measures(cnn=cnn, vit=vit, vit_fpn=vit_fpn).items():
        how = partial(measure, job=name, verb=verb.split(), run=run, data=data, options=options)
        jobs[name] = Job(how, (run,))
    for what, run in (("cnn", cnn), ("vit", vit)):
        jobs[f"embed/{what}"] = Job(partial(embed, job=f"embed/{what}", run=run), (run,))
    for what in ("segment", "classify", "detect"):
        run, name = f"finetune/{what}", f"predict/{what}"
        jobs[name] = Job(partial(predict, job=name, run=run), (run,))
    return jobs


# What decides the numbers of a fine-tuning, beside what is tried.
LABELS = ("--fraction", "1.0", "--seeds", "1")
SEGMENT = (
    *("--start", "all", "--steps", "2", "--batch-size", "2", "--crop-size", "48", "--optimiser", "adamw"),
    *("--lr", "0.01", "--encoder-lr-scale", "1", "--layer-decay", "1", "--weight-decay", "0.01"),
    *("--warmup-steps", "1", "--distort", "off", "--batch-norm", "train", "--inference", "whole"),
)
DETECT = (
    *("--start", "all", "--steps", "2", "--batch-size", "2", "--image-size", "64", "--lr", "0.005"),
    *("--layer-decay", "1", "--batch-norm", "train"),
)
RCNN = (
    *(*DETECT, "--head", "rcnn", "--box-head", "2fc", "--head-norm", "none", "--head-width", "0.0625"),
    *("--proposals", "16"),
)
CLASSIFY = (
    *("--start", "all", "--steps", "2", "--batch-size", "4", "--image-size", "64", "--lr", "0.001"),
    *("--layer-decay", "0.75", "--weight-decay", "0.05", "--label-smoothing", "0.1"),
)
TRICKS = ("--mixup", "0.8", "--cutmix", "1", "--randaugment", "9", "--random-erasing", "0.25")
KNN = ("--k", "3", "5", "--temperature", "0.07", "--image-size", "64")
LINEAR = (
    *("--lr", "0.01", "0.1", "--epochs", "4", "--batch-size", "8", "--weight-decay", "0", "--blocks", "2"),
    *("--image-size", "64"),
)


def measures(*, cnn: str, vit: str, vit_fpn: str) -> dict[str, tuple[str, str, str, Sequence[str]]]:
    """Return the command, the run, the data and the options of what is fine-tuned or evaluated; runs by their jobs."""
    upernet = (
        "--start",
        "encoder",
        "--decoder",
        "upernet",
        "--layer-decay",
        "0.9",
        "--distort",
        "on",
        "--inference",
        "slide",
    )
    starts = ("--decoder", "auto", "--start", "random", "encoder", "all", "--seeds", "2", "--fraction", "0.5")
    few = ("--fraction", "0.5", "1.0", "--seeds", "1")
    return {
        "finetune/segment": ("finetune segment", cnn, "masks", (*SEGMENT, *LABELS)),
        "finetune/segment-upernet": ("finetune segment", vit, "masks", (*SEGMENT, *LABELS, *upernet)),
        "finetune/segment-starts": ("finetune segment", cnn, "masks", (*SEGMENT, *starts)),
        "finetune/classify": ("finetune classify", vit, "classes", (*CLASSIFY, *LABELS, *TRICKS)),
        "finetune/classify-cnn": ("finetune classify", cnn, "classes", (*CLASSIFY, *few)),
        "finetune/detect": ("finetune detect", cnn, "coco", (*RCNN, *LABELS, "--task", "masks")),
        "finetune/detect-vit": ("finetune detect", vit_fpn, "coco", (*RCNN, *LABELS, "--task", "boxes")),
        "finetune/detect-retinanet": ("finetune detect", cnn, "coco", (*DETECT, *LABELS, "--head", "retinanet")),
        "evaluate/knn": ("evaluate knn", vit, "classes", KNN),
        "evaluate/linear": ("evaluate linear", cnn, "classes", LINEAR),
    }


JOBS: Mapping[str, Job] = {**pretraining_jobs(), **later_jobs()}


def chosen(pattern: str) -> list[str]:
    """Return the names of the jobs that contain `pattern` or match it, after those that they need, in order."""
    wanted = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    found = {name for name in JOBS if fnmatchcase(name, wanted)}
    before: set[str] = set()
    while before != found:
        before = set(found)
        found |= {need for name in before for need in JOBS[name].needs}
    return [name for name in JOBS if name in found]
