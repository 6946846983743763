"""`pretrain`: a folder of photographs and a model's name in, a run folder with weights out."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dovetail.durable import write_whole
from dovetail.errors import DovetailError
from dovetail.locking import LOCK, in_use
from dovetail.provenance import refuse_decided_in_file

if TYPE_CHECKING:
    from torch import nn

    from dovetail.transfer.ranges import Range


CONFIG = "config.yaml"
RECIPE = "recipe.txt"
PROBE = ".writable"
OF_A_RUN = "# What ran. The recipe's options are complete: those that the preset stands for are among them.\n"
PATHS = ("data", "init", "knn_data", "dense_data")
PATTERN = re.compile(r"\{")  # of the names of shards
COPY = f"checkpoints/{CONFIG}"
LEFTOVERS = (PROBE, f"{CONFIG}.tmp", LOCK)  # what a run killed before it had a config leaves


@dataclass(frozen=True)
class Run:
    """A finished or stopped run.

    Attributes:
        folder: Where everything is: config.yaml, metrics.jsonl, train.log, checkpoints/, exported/.
        step: Optimiser steps done.
        total_steps: Optimiser steps of the whole run.
    """

    folder: Path
    step: int
    total_steps: int

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.total_steps

    def load(self) -> nn.Module:
        """Return the pre-trained module; see `dovetail.load`."""
        from dovetail.weights import load

        return load(self.folder)


def pretrain(
    *,
    data: Any = None,
    model: Any = None,
    method: str = "decon-sl",
    out: str | Path = "",
    preset: Literal["auto", "paper", "small", "short"] = "auto",
    recipe: dict[str, Any] | None = None,
    epochs: int | Literal["auto"] = "auto",
    max_steps: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    accumulate: int = 1,
    lr: float | Literal["auto"] = "auto",
    image_size: int | None = None,
    in_channels: int = 3,
    value_range: list[float] = [],  # noqa: B006 - read only
    init: str | None = None,
    mean: list[float] = [],  # noqa: B006 - read only
    std: list[float] = [],  # noqa: B006 - read only
    freeze_encoder_epochs: float | Literal["all"] = 0.0,
    encoder: str | None = None,
    decoder: str | None = None,
    drop_path: float = 0.0,
    checkpoint_blocks: bool = False,
    seed: int = 0,
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    devices: int | Literal["auto"] = "auto",
    num_nodes: int = 1,
    strategy: str = "auto",
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto",
    workers: int | Literal["auto"] = "auto",
    log_every_steps: int = 20,
    save_every_minutes: float = 10.0,
    keep_every_epochs: int | None = None,
    report_every_minutes: float = 5.0,
    knn_data: str | Path | None = None,
    knn_readings: int = 20,
    dense_data: str | Path | None = None,
    dense_readings: int = 10,
    loggers: list[str] = [],  # noqa: B006 - read only
    skip_nonfinite_steps: int = 0,
    compile: bool = False,
    profile: int = 0,
    overwrite: bool = False,
    resume: bool = False,
) -> Run:
    """Pre-train a model on unlabelled images.

    Args:
        data: Folder of images (searched recursively), .zip or uncompressed .tar of images, text file with one path a
            line, folder or pattern of WebDataset shards ("shards/photos-{000..147}.tar", URLs), set of
            Hugging Face's (a saved folder, or "hf:NAME#SPLIT"), or (in Python) a sequence of paths or a dataset of
            images.
        model: Name of a model (`dovetail models` lists them: timm/NAME, timm/NAME+fpn, timm/NAME+fcn,
            smp/ARCHITECTURE/ENCODER, torchvision/NAME), or a call with options, "timm.create_model('NAME',
            patch_size=8)+fpn(channels=64)" or "smp.FPN(...)", or (in Python) a module.
        method: Name of a method (`dovetail methods` lists them).
        out: Folder of the run; must be empty or new unless `overwrite` or `resume` is given.
        preset: Sizes of heads and the like: "paper" as published, "small" for up to 20,000 images or no GPU, "auto"
            chooses between them; "short" has momenta and rates for some hundred steps too. Options of the recipe that
            are given count more.
        recipe: Options of the method's recipe (`dovetail show METHOD` prints it).
        epochs: Passes over the images; a warm-up that was not given takes a quarter of them at most.
        max_steps: Stop after this many optimiser steps; schedules are those of a run of this length.
        batch_size: Images per device and forward pass.
        accumulate: Forward passes per optimiser step.
        lr: Peak learning rate; "auto" scales the recipe's linearly with the global batch.
        image_size: Side of the global views in pixels; the recipe's unless given.
        in_channels: Channels of the images.
        value_range: Black and white of images with more than 8 bits a channel, such as 0 4095 for 12 bits; what lies
            beyond is clipped. Unless given, 0 and 65535, of floating point 0 and 1.
        init: Weights to start from: a .safetensors file, a run's folder, or "imagenet" for supervised weights of the
            encoder. Those of EfficientNet-Lite0 come from an installed package, the others from the library's hub.
        mean: Mean of each channel, for values in [0, 1], with which images are normalised. By default that of the
            weights to start from where it is known, and else ImageNet's.
        std: Standard deviation of each channel, likewise.
        freeze_encoder_epochs: Epochs, whole or not, in which the encoder and its BatchNorm statistics stand still while
            the decoder and the heads learn; then all of the network trains. "all" freezes the encoder for the whole
            run.
        encoder: Of a module of your own: name of the sub-module that is the encoder.
        decoder: Of a module of your own: name of the sub-module that is the decoder.
        drop_path: Of timm's ViTs, given by name: stochastic depth of its last block, in [0, 1); off in the teacher.
        checkpoint_blocks: Of timm's ViTs, given by name: compute blocks again in the backward pass, to save memory.
        seed: Of weights, order of images, views and dropout.
        accelerator: Kind of device.
        devices: Number of devices on each node.
        num_nodes: Number of nodes; in a resumed run it counts where `devices` is given.
        strategy: "ddp", or "auto" for it where there are several devices: each holds the whole model. "fsdp": each
            holds its part of every weight, for models that are too large for one device.
        precision: Number format; "auto" takes bfloat16 autocast where the device computes it natively.
        workers: Loading processes per device, each some batches ahead; 0 is one that reads only the next batch.
        log_every_steps: Steps between two lines of metrics.jsonl.
        save_every_minutes: Minutes between two checkpoints.
        keep_every_epochs: Epochs between two checkpoints that are kept beside the last one.
        knn_data: Folder with train/CLASS/ and val/CLASS/ images, as of `dovetail evaluate knn`: the log says how many
            of the latter the encoder as it stands tells by their 20 nearest of the former. Training never sees them.
        knn_readings: Lines of the log with kNN, evenly over the run; before the first step it is measured, too.
        dense_data: Images with masks, as of `dovetail evaluate dense`: the log has the mIoU of the encoder's and the
            decoder's frozen maps, by a linear classifier and by retrieval. Training never sees them.
        dense_readings: Lines of the log with it, evenly over the run; before the first step it is measured, too.
        loggers: Loggers beside TensorBoard: wandb, mlflow, or both; their packages must be installed.
        report_every_minutes: Minutes between two writings of the page report.html; 0 writes none.
        skip_nonfinite_steps: Steps that may be left out because the loss or a gradient is no finite number, before
            the run ends for it; all are in nonfinite.jsonl with their images.
        compile: Let torch.compile run the networks; the first step waits for it, minutes. Not with fsdp.
        profile: Steps to profile, after the first three: a summary on the screen and a trace in OUT/profile.
        overwrite: Empty a non-empty `out` first.
        resume: Go on with the run in `out`, exactly where it stopped; on other devices with the same images in a step.

    Returns:
        The run; `run.load()` gives the pre-trained module.

    Raises:
        DovetailError: For anything that was asked for and cannot be done, in one sentence.
    """
    asked = dict(locals())
    return started(asked, named={name for name, value in asked.items() if not is_default(name, value)})


def pretrain_given(*, from_file: Collection[str] = (), **given: Any) -> Run:
    """Do what `pretrain` does, where it is known which options were named: a resumed run must agree with all of them.

    Args:
        from_file: Names of the parameters that a config file gave, and not the command line.
        given: Parameters of `pretrain`; those that name its default count as well as others.
    """
    defaults = pretrain.__kwdefaults__ or {}
    refuse_decided_in_file(given, from_file, defaults)
    return started(defaults | given, named=given.keys(), from_file=from_file)


def started(options: Mapping[str, Any], *, named: Collection[str], from_file: Collection[str] = ()) -> Run:
    """Run what `pretrain` was asked for; `named` are the parameters that were given by themselves, and `from_file`
    those of them that a config file gave."""
    asked = {name: value for name, value in options.items() if name not in ("overwrite", "resume")}
    out = asked["out"]
    again = requeued() and (Path(out) / CONFIG).is_file()  # by the command of the first time, --overwrite included
    resume, overwrite = options["resume"] or again, options["overwrite"] and not again
    first = is_first_process()
    folder = check_out(out, overwrite=overwrite, resume=resume) if first else Path(out)
    with in_use(folder) if first else nullcontext():
        if first:  # what another process has written meanwhile counts
            check_out(out, overwrite=overwrite, resume=resume)
        if resume:
            asked = resumed(asked, folder, named=named)
            check_still_there(folder, asked["data"])
        require(asked)
        if overwrite:
            refuse_sources_in(folder, asked)
        from dovetail.data.values import values_within
        from dovetail.job import execute

        # A resumed run's config is a file.
        typed = {name for name in (named if resume else asked) if name not in from_file}
        with values_within(asked["value_range"]):
            return execute(asked, folder, resume=resume, overwrite=overwrite, typed=typed)


def refuse_sources_in(folder: Path, asked: Mapping[str, Any]) -> None:
    """Raise `DovetailError` where the folder to be emptied holds what the run begins with."""
    for name in ("data", "init", "knn_data", "dense_data"):
        value = asked[name]
        if not isinstance(value, (str, Path)) or "://" in str(value):
            continue
        if Path(value).resolve().is_relative_to(folder.resolve()):
            raise DovetailError(
                f"{name} {str(value)!r} lies in {folder}, which --overwrite empties; name another folder for --out."
            )


def require(asked: Mapping[str, Any]) -> None:
    """Raise `DovetailError` where something without a default is missing, and for a number out of range."""
    from dovetail.transfer.ranges import check_ranges

    if asked["data"] is None:
        raise DovetailError("No data was named; give a folder of images with --data.")
    if asked["model"] is None:
        raise DovetailError("No model was named; give one such as --model smp/unet/resnet50.")
    check_ranges(asked, ranges())
    mean, std = asked["mean"], asked["std"]
    if any(len(one) not in (0, asked["in_channels"]) for one in (mean, std)) or len(mean) != len(std):
        raise DovetailError(
            f"mean is {list(mean)} and std is {list(std)}; give both, with one number for each of the "
            f"{asked['in_channels']} channels, or neither."
        )
    if any(value <= 0 for value in std):
        raise DovetailError(f"std is {list(std)}; each number must be above 0.")


def ranges() -> Mapping[str, Range]:
    """Return what numbers the options of `pretrain` may have; those of recipes are in `dovetail.recipes.values`."""
    from dovetail.transfer.ranges import MOST_SIDE_PX, Range

    counts = ("epochs", "max_steps", "accumulate", "devices", "num_nodes", "log_every_steps", "keep_every_epochs")
    return {
        **dict.fromkeys(counts, Range(1, most=1 << 40)),
        **dict.fromkeys(("save_every_minutes", "report_every_minutes", "skip_nonfinite_steps", "profile"), Range(0)),
        **dict.fromkeys(("knn_readings", "dense_readings", "freeze_encoder_epochs"), Range(0)),
        "batch_size": Range(1, most=1 << 20),
        "image_size": Range(8, most=MOST_SIDE_PX),
        "in_channels": Range(1, most=4096),
        "lr": Range(0, above=True, most=1e38),  # float32's largest, about
        "seed": Range(0),
        "workers": Range(0, most=4096),
    }


def requeued() -> bool:
    """Whether SLURM runs this job again, with the command that it had at first."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def is_first_process() -> bool:
    """Whether this is the process of a distributed run that makes the folder; launchers number the others."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), "0")) == 0


def check_out(out: str | Path, *, overwrite: bool, resume: bool) -> Path:
    """Return the run's folder, made.

    Raises:
        DovetailError: If it is not empty and neither way on is chosen, cannot be written, or holds no run to overwrite.
    """
    if not str(out):
        raise DovetailError("No folder for the run was named; give one with --out.")
    if overwrite and resume:
        raise DovetailError("--overwrite and --resume exclude each other; choose one.")
    folder = Path(out)
    if resume and not (folder / CONFIG).is_file():
        raise DovetailError(f"There is no run to resume in {folder}: it has no {CONFIG}.")
    try:
        if folder.exists() and not folder.is_dir():
            raise DovetailError(f"{folder} is a file; name a folder for the run.")
        if not resume and folder.is_dir() and any(entry.name not in LEFTOVERS for entry in folder.iterdir()):
            if not overwrite:
                raise DovetailError(f"{folder} is not empty; add --overwrite to start anew or --resume to go on.")
            check_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / PROBE
        probe.write_bytes(b"0" * 4096)
        probe.unlink()
    except OSError as error:
        raise DovetailError(f"Cannot write to {folder}: {error.strerror}; choose another folder for --out.") from None
    return folder


def check_run(folder: Path) -> None:
    """Raise `DovetailError` where a folder does not look like a run's."""
    if not (folder / CONFIG).is_file():
        raise DovetailError(
            f"{folder} holds files but no run ({CONFIG} is missing), so --overwrite leaves it alone; "
            "name another folder."
        )


def empty(folder: Path) -> None:
    """Remove what a run left in `folder`, last of all what tells that it is a run's."""
    entries = (entry for entry in folder.iterdir() if entry.name != LOCK)  # which this process holds
    for entry in sorted(entries, key=lambda entry: entry.name == CONFIG):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def resumed(asked: dict[str, Any], folder: Path, *, named: Collection[str]) -> dict[str, Any]:
    """Return the saved run's options; the machine's (devices, workers, log) may differ from those of the first time.

    With other devices a step keeps its images: each device takes more or fewer of them, in more or fewer passes.
    """
    from dovetail.cli import check_options
    from dovetail.elastic import shared_anew

    saved = read_config(folder)
    check_options(saved, str(folder / CONFIG))
    movable = (
        *("accelerator", "devices", "num_nodes", "strategy", "workers", "log_every_steps", "save_every_minutes"),
        *("report_every_minutes", "knn_data", "knn_readings", "loggers", "skip_nonfinite_steps", "profile"),
        *("dense_data", "dense_readings", "batch_size", "accumulate"),
    )
    known = {**{name: default_of(name) for name in asked}, **saved}
    known["recipe"] = published(known) | (saved.get("recipe") or {})
    for name, value in asked.items():
        if name in ("out", *movable) or name not in named or value is None or unresolved(value):
            continue
        if not isinstance(value, (str, int, float, bool, dict, Path)) and name not in ("mean", "std", "value_range"):
            saved[name] = value  # a module or a dataset cannot be written down: it is given again
        elif name == "epochs" and saved.get("max_steps") is not None and value >= known.get(name, math.inf):
            continue  # the run saved those that fit into its steps
        elif name == "data":
            saved[name] = normal(
                value
            )  # it may have moved: whether the images are the same is looked at when it is read
        elif name == "preset" and agrees(preset_options(value, saved, asked), saved.get("recipe")):
            continue  # the run saved what the preset stood for
        elif not agrees(anchored(name, normal(value)), anchored(name, known.get(name))):
            had = {option: known[name].get(option) for option in value} if isinstance(value, dict) else known.get(name)
            raise DovetailError(
                f"The run in {folder} has {name} {had!r}, not {value!r}; leave {name} out to resume it."
            )
    given = {name: asked[name] for name in movable if name in named and not unresolved(asked[name])}
    if "devices" in given:  # who names the devices of a node means this number of nodes, one as well
        given["num_nodes"] = asked["num_nodes"]
    options = {**{name: default_of(name) for name in asked}, **saved, **given, "out": str(folder)}
    return options | shared_anew(saved, given, options)


def check_still_there(folder: Path, data: Any) -> None:
    """Raise `DovetailError` where the images of a run that goes on are not where they were."""
    here = isinstance(data, str) and "://" not in data and not data.startswith("hf:") and not PATTERN.search(data)
    if here and not Path(data).exists():
        raise DovetailError(f"The images of the run in {folder} are not at {data} any more; say where with --data.")


def anchored(name: str, value: Any) -> Any:
    """Return the value of an option that names a path here as an absolute one, which holds in every working folder."""
    if name not in PATHS or not isinstance(value, str) or value in ("", "imagenet") or "://" in value:
        return value
    here = Path(PATTERN.split(value)[0])  # of a pattern of shards, what comes before its first brace
    known = here.exists() or (here.parent.is_dir() and here.name != value)
    return os.path.abspath(value) if known else value  # noqa: PTH100 - of a pattern, too, and links stay


def unresolved(value: Any) -> bool:
    """Whether a value stands for what the run resolved it to."""
    return isinstance(value, str) and value == "auto"


def published(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe's options that a run has whose file does not name them."""
    from dovetail.recipes.table import LATER, options_of

    known = options_of(str(options["method"]))
    return {name: normal(LATER.get(name, one.default)) for name, one in known.items()}


def preset_options(preset: Any, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a preset stands for in any run, less those that were given by themselves."""
    from dovetail.recipes import presets

    method, given = str(saved.get("method")), {*(asked["recipe"] or {})}
    if "decoder_grid" in (saved.get("recipe") or {}):  # given by itself, or in a preset of an older version
        given |= {"decoder_cells", "decoder_hidden"}
    return presets.beside(presets.agreed_options(preset, method), given, method)


def is_default(name: str, value: Any) -> bool:
    """Whether a parameter of `pretrain` was left alone; an array is not compared, as that would give another."""
    default = default_of(name)
    return value is default or (isinstance(value, (str, int, float)) and bool(value == default))


def default_of(name: str) -> Any:
    """Return the default of one of `pretrain`'s parameters."""
    defaults = pretrain.__kwdefaults__
    return None if defaults is None else defaults[name]


def agrees(given: Any, saved: Any) -> bool:
    """Whether a value is the saved one; options are asked for one by one, as a run saves those of its preset too."""
    if isinstance(given, dict) and (saved is None or isinstance(saved, dict)):  # a file need not name any
        known = saved or {}
        return all(name in known and agrees(value, known[name]) for name, value in given.items())
    return bool(normal(given) == saved)


def normal(value: Any) -> Any:
    """Return a value as it reads in a config file."""
    if isinstance(value, tuple):
        return list(value)
    return os.fspath(value) if isinstance(value, Path) else value


def read_config(folder: Path) -> dict[str, Any]:
    """Return a run's saved options."""
    from dovetail.options_file import read_options_file

    place = folder / CONFIG
    if place.is_file() and not place.stat().st_size and (folder / COPY).is_file():
        place = folder / COPY
    content = read_options_file(place)
    if not isinstance(content, dict):
        raise DovetailError(
            f"{place} holds no options; put back the run's own {CONFIG}, of which {folder / COPY} is a copy, to go on "
            "with its checkpoints."
        )
    return content


def write_config(folder: Path, options: Mapping[str, Any]) -> None:
    """Save a run's options, resolved, so that `dovetail pretrain --config` runs the same again."""
    import yaml

    plain = {name: anchored(name, normal(value)) for name, value in options.items()}
    for name in ("data", "model"):
        if not isinstance(plain[name], str):
            plain[name] = None  # given in Python; must be given again
    text = OF_A_RUN + yaml.safe_dump(plain, sort_keys=False)
    write_whole(folder / CONFIG, text)
    (folder / COPY).parent.mkdir(exist_ok=True)
    write_whole(folder / COPY, text)  # whoever empties or loses the first can still go on from the checkpoints
