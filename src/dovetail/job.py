"""What `pretrain` does once its options are known: build, print what was resolved, train, export, say how to go on."""

from __future__ import annotations

import copy
import logging
import math
import textwrap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_only
from safetensors import SafetensorError
from torch import nn

from dovetail.data.identity import Identity, difference, identity_of, read_identity, write_identity
from dovetail.data.loader import make_loader
from dovetail.data.sources import ImageSource, PathSource, open_source
from dovetail.data.values import told_of_values, value_range
from dovetail.distributed import rank, world_size
from dovetail.durable import flush_folder
from dovetail.errors import DovetailError, counted
from dovetail.networks.build import build_network
from dovetail.networks.initialise import describe_init, initialise, is_downloaded, starting_statistics
from dovetail.networks.network import Construction, Network
from dovetail.networks.parts import is_layer_normed
from dovetail.networks.probe import check_image_size
from dovetail.networks.random_start import begin_as, check_positions, fix_positions
from dovetail.pretraining import CONFIG, Run, empty, is_first_process, write_config
from dovetail.provenance import refuse_network_in_file
from dovetail.recipe import Recipe
from dovetail.recipes import presets
from dovetail.recipes.table import build, options_of, suited_optimiser, with_later_options
from dovetail.showing import recipe_lines, words
from dovetail.train.checkpoints import Checkpoints
from dovetail.train.defaults import Settings, Wishes, best_accelerator, resolve
from dovetail.train.engine import train
from dovetail.train.learner import Learner
from dovetail.train.loggers import extra_loggers
from dovetail.train.overseer import Dense, Knn
from dovetail.views.batch import ViewBatch, statistics, to_views
from dovetail.views.view import View
from dovetail.weights import MODEL_FILE, save_exported

EXPORTED = "exported"
SKIPPED = "skipped.jsonl"

log = logging.getLogger(__name__)


def execute(
    asked: Mapping[str, Any], out: Path, *, resume: bool, overwrite: bool = False, typed: Collection[str]
) -> Run:
    """Run the pre-training that `asked` (the parameters of `pretrain`) describes, in `out`.

    With `overwrite` the folder is emptied once all that can be refused has been. The options in `typed` were given on
    the command line or in Python, and may reach the network; all others were read from a file, and may not.
    """
    if asked["loggers"]:
        refuse_network_in_file("loggers", asked["loggers"], typed="loggers" in typed)
    source = open_source(asked["data"], fetch="data" in typed)
    torch.manual_seed(asked["seed"])
    network = network_for(asked)
    options = recipe_options(asked, source, network, resume=resume)
    recipe = build(asked["method"], network.taps, options)
    settings = resolve(recipe, wishes_of(asked), num_images=source.num_images)
    if not resume:  # a saved run names what it was shortened to
        options |= shortened(recipe, settings, options_of(asked["method"]).keys() - dict(asked["recipe"] or {}).keys())
        recipe = build(asked["method"], network.taps, options)
    recipe = normalised_recipe(recipe, network, asked, resume=resume)
    for view in recipe.views.views:
        # Queries need a view with query patches, and no image size can be wrong for them alone.
        taps = {term.tap for term in recipe.terms if view.role in term.roles and term.tap != "queries"}
        check_image_size(network, view.size_px, taps=taps, batch_size=settings.batch_size)
    check_freeze(settings, network)
    begin_random(network, recipe, asked)
    knn, dense = knn_of(asked, recipe, settings), dense_of(asked, recipe, settings, network)
    needed = not (resume and Checkpoints(out / "checkpoints").last.exists())
    begin_with(network, asked["init"], needed=needed, fetch="init" in typed)
    if needed and recipe.query_rule.positions == "sincos":
        check_positions(network)
    resolved = resolved_options(asked, settings, options, recipe)
    identity = identity_of(source)
    if resume:
        check_same_images(identity, out, moved="data" in typed, begun=not needed)
    if overwrite and is_first_process():
        empty(out)
    if is_first_process():
        tell_of_source(source)
        write_identity(out, identity)
    announce(resolved, recipe, network, settings, out)
    loggers = extra_loggers(asked["loggers"], out)
    report = report_of(resolved, recipe, network, source, settings, out)
    learner = Learner(recipe, network)
    result = train(
        learner,
        batches=lambda start: batches_from(source, recipe, settings, asked["in_channels"], out, start),
        to_views=lambda batch, device: views_of(batch, recipe, device),
        settings=settings,
        out=out,
        resume=resume,
        loggers=loggers,
        callbacks=[report] if report is not None else [],
        compile_networks=asked["compile"],
        profile=asked["profile"],
        knn=knn,
        dense=dense,
        names=lambda batch: [source.name(index) for index in batch.used.tolist() if index >= 0],
    )
    export_run(learner, resolved, settings, out)
    return Run(out, result.steps, settings.total_steps)


def check_same_images(identity: Identity, out: Path, *, moved: bool, begun: bool) -> None:
    """Look whether a run that goes on has the images that it began with.

    Raises:
        DovetailError: They were named again (`moved`), and are others; or there is a checkpoint (`begun`), and they are
            more or fewer.
    """
    before = read_identity(out)
    if before is None:
        if moved and is_first_process():
            log.warning("The run in %s does not say which images it began with; it goes on with those named.", out)
        return
    told = difference(before, identity)
    if told and moved:
        raise DovetailError(f"The images of --data are not those of the run in {out}: {told}; give the same images.")
    if begun and before["images"] != identity["images"]:
        raise DovetailError(
            f"The images of the run in {out} have changed: {told}; put back the images that it began with, or say "
            "where they are with --data."
        )
    if told and is_first_process():
        log.warning("The images of the run in %s have changed: %s. It goes on with those that are there.", out, told)


def tell_of_source(source: ImageSource) -> None:
    """Say what is left out of a source, and where its values use little of their range."""
    if source.left_out:
        print(source.left_out)
    if isinstance(source, PathSource):
        names = [source.name(index) for index in range(0, source.num_images, max(source.num_images // 64, 1))]
        if told := told_of_values(names, value_range()):
            log.warning("%s", told)


def begin_with(network: Network, init: str | None, *, needed: bool, fetch: bool) -> None:
    """Give a network the weights that `init` names; a run that goes on has others, and is only told what is missing.

    Weights are downloaded only where `fetch` allows it.
    """
    if is_downloaded(network, init) and not fetch:
        if needed:
            refuse_network_in_file("init", init, typed=False)
        return
    try:
        initialise(network, starting_weights(init))
    except DovetailError as error:
        if needed:
            raise
        log.warning("%s The run goes on with its own weights.", error)


def begin_random(network: Network, recipe: Recipe, asked: Mapping[str, Any]) -> None:
    """Give an encoder that starts from random weights those of the recipe; a module given in Python keeps its own."""
    if asked.get("init") is not None or not isinstance(asked["model"], str):
        return
    if recipe.encoder_init is not None:
        begin_as(network, recipe.encoder_init, seed=int(asked["seed"]))
    if recipe.query_rule.positions == "sincos":
        fix_positions(network)


def network_for(asked: Mapping[str, Any]) -> Network:
    """Return the network of the model that was asked for; a module given in Python is copied, not changed."""
    model = asked["model"]
    if not isinstance(model, (str, nn.Module)):
        raise DovetailError(f"model is a {type(model).__name__}; give a name or a torch.nn.Module.")
    network = build_network(
        copied(model) if isinstance(model, nn.Module) else model,
        in_channels=asked["in_channels"],
        encoder=asked["encoder"],
        decoder=asked["decoder"],
        image_size=asked["image_size"] or 224,
        drop_path=asked["drop_path"],
        checkpoint_blocks=asked["checkpoint_blocks"],
    )
    if network.in_channels != asked["in_channels"]:  # a call may say its own
        raise DovetailError(
            f"The model takes {network.in_channels} channels, and images are read with {asked['in_channels']}; give "
            f"--in-channels {network.in_channels}."
        )
    return network


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a module, with weights, flags and hooks of its own; raise `DovetailError` where none can be."""
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DovetailError(
            f"The {type(model).__name__} cannot be copied, and training must not change yours ({reason}); give a "
            "module that copy.deepcopy takes."
        ) from error


def recipe_options(
    asked: Mapping[str, Any], source: ImageSource, network: Network, *, resume: bool = False
) -> dict[str, Any]:
    """Return the options of the recipe: the preset's, then those that were given."""
    accelerator = best_accelerator() if asked["accelerator"] == "auto" else asked["accelerator"]
    # A run saves what its preset stood for among the recipe's options, and which it was; these count when it goes on.
    preset = (
        "paper" if resume else presets.choose(asked["preset"], num_images=source.num_images, accelerator=accelerator)
    )
    given = dict(asked["recipe"] or {})

    def gathered(optimiser: str) -> dict[str, Any]:
        found = presets.options(preset, asked["method"], network.taps, optimiser=optimiser)
        size = {} if asked["image_size"] is None else {"image_size": asked["image_size"]}
        return with_later_options(
            asked["method"], presets.beside(found, given, asked["method"]) | size | given, resume=resume
        )

    if resume or "optimiser" in given:  # a run from before there was a choice goes on with what it had
        return gathered(str(given.get("optimiser", "published")))
    options, layer_normed = gathered("published"), is_layer_normed(network)
    suited = suited_optimiser(asked["method"], network.taps, options, layer_normed=layer_normed)
    return options if suited == "published" else gathered(suited) | {"optimiser": suited}


def check_freeze(settings: Settings, network: Network) -> None:
    """Raise `DovetailError` where no weight of the model would be trained; warn where the encoder never thaws."""
    epochs = settings.freeze_encoder_epochs
    if epochs == math.inf and not network.decoder_prefixes:
        raise DovetailError(
            "freeze_encoder_epochs is 'all' and the model has no decoder, so none of its weights would be trained; "
            "choose a model with a decoder, or a number of epochs."
        )
    if 0 < epochs < math.inf and round(epochs * settings.steps_per_epoch) >= settings.total_steps:
        log.warning(
            "The encoder is frozen for the whole run of %d steps, because freeze_encoder_epochs is %g.",
            *(settings.total_steps, epochs),
        )


def shortened(recipe: Recipe, settings: Settings, free: Collection[str]) -> dict[str, float]:
    """Return how long warm-up and frozen prototypes last in a run for which the recipe's epochs of them are too many.

    They take a quarter of the run at most: else a run of some hundred steps would end while it warms up.

    Args:
        recipe: As published, or as a preset has it.
        settings: Of the run.
        free: Options that were not given by themselves.
    """
    most = settings.total_steps / settings.steps_per_epoch / 4
    frozen = max((rule.frozen_epochs for rule in recipe.optimiser.rules), default=0.0)
    epochs = {"warmup_epochs": recipe.optimiser.warmup_epochs, "frozen_epochs": frozen}
    return {name: float(f"{most:.3g}") for name, value in epochs.items() if value > most and name in free}


def wishes_of(asked: Mapping[str, Any]) -> Wishes:
    """Return what was asked of the engine."""
    same = (
        *("seed", "accelerator", "devices", "num_nodes", "batch_size", "accumulate", "epochs", "max_steps"),
        *("precision", "workers", "strategy", "log_every_steps", "save_every_minutes", "keep_every_epochs"),
        *("skip_nonfinite_steps", "knn_readings", "dense_readings"),
    )
    frozen = math.inf if asked["freeze_encoder_epochs"] == "all" else asked["freeze_encoder_epochs"]
    return Wishes(peak_lr=asked["lr"], freeze_encoder_epochs=frozen, **{name: asked[name] for name in same})


def starting_weights(init: str | None) -> str | Path | None:
    """Return what `init` names: a run's folder stands for its exported model."""
    if init is None or init == "imagenet" or not Path(init).is_dir():
        return init
    from dovetail.transfer.start import TASK_FILE  # labelled sets take a while to import

    folder = Path(init)
    found = next((path for path in (folder / EXPORTED / MODEL_FILE, folder / MODEL_FILE) if path.is_file()), None)
    if (folder / TASK_FILE).is_file():
        raise DovetailError(f"{init} holds a fine-tuned model; name the pre-training run that it was made from.")
    if found is None and (folder / CONFIG).is_file():
        raise DovetailError(f"The run {init} has exported no weights yet; finish it with --resume first.")
    if found is None:
        raise DovetailError(f"{init} holds no pre-training run; name the folder of one, or a .safetensors file.")
    return found


def normalised_recipe(recipe: Recipe, network: Network, asked: Mapping[str, Any], *, resume: bool = False) -> Recipe:
    """Return the recipe with the mean and deviation that were given, or else those of the weights to start from.

    A resumed run that names none is older than these options, and keeps the recipe's.
    """
    found = (tuple(asked["mean"]), tuple(asked["std"])) if asked.get("mean") else None
    if found is None and not resume:
        found = starting_statistics(network, starting_weights(asked["init"]))
    return recipe if found is None else replace(recipe, views=replace(recipe.views, mean=found[0], std=found[1]))


def resolved_options(
    asked: Mapping[str, Any], settings: Settings, options: Mapping[str, Any], recipe: Recipe
) -> dict[str, Any]:
    """Return the parameters of `pretrain` with everything on "auto" filled in, the preset's among the recipe's."""
    mean, std = statistics(recipe.views, asked["in_channels"])
    own = settings.as_dict() | {"lr": settings.peak_lr, "mean": list(mean), "std": list(std)}
    own["freeze_encoder_epochs"] = asked["freeze_encoder_epochs"]  # "all" is infinite there
    filled = {name: own.get(name, value) for name, value in asked.items()}
    preset = presets.choose(asked["preset"], num_images=settings.num_images, accelerator=settings.accelerator)
    return filled | {"preset": preset, "recipe": dict(options)}


@rank_zero_only
def announce(options: Mapping[str, Any], recipe: Recipe, network: Network, settings: Settings, out: Path) -> None:
    """Save and print what was resolved, before the first step."""
    write_config(out, options)
    text = ran_in_words(options, settings) + recipe_lines(as_it_runs(recipe, settings), network)
    (out / "recipe.txt").write_text(text + "\n", encoding="utf-8")
    model = options["model"] if isinstance(options["model"], str) else type(options["model"]).__name__
    print(f"{options['method']} on {model}, {counted(settings.num_images, 'image')}, into {out}")
    print(settings.table())
    if options["init"] is not None:
        print(f"init              {describe_init(network, options['init'])}")
    mean, std = (", ".join(f"{value:g}" for value in options[name]) for name in ("mean", "std"))
    print(f"normalisation     mean {mean}; std {std}")
    given = ", ".join(f"{name}={value}" for name, value in options["recipe"].items())
    print(f"recipe options    {given or 'as published'}")
    for term in recipe.terms:
        print(f"term {term.name:<12} {term_line(recipe, network, term.name)}")


def as_it_runs(recipe: Recipe, settings: Settings) -> Recipe:
    """Return a recipe with the length and the batch of a run in the place of the paper's, to be read."""
    return replace(recipe, epochs=settings.epochs, batch_size=settings.global_batch)


def ran_in_words(options: Mapping[str, Any], settings: Settings) -> str:
    """Return a line on the length of a run, its batch, rate and preset."""
    return (
        f"What runs: {counted(settings.total_steps, 'step')} of {counted(settings.global_batch, 'image')} "
        f"({counted(settings.epochs, 'epoch')} of {counted(settings.num_images, 'image')}), peak learning rate "
        f"{settings.peak_lr:.4g}, preset {options['preset']}\n\n"
    )


def term_line(recipe: Recipe, network: Network, name: str) -> str:
    """Return one line on a term: tap, cells and weight."""
    term = next(one for one in recipe.terms if one.name == name)
    tap = network.taps[term.tap]
    cells = recipe.views.views[0].size_px // tap.stride
    line = f"weight {words(term.weight)}, tap {term.tap} ({tap.channels} channels, stride {tap.stride} px)"
    if tap.kind == "map":
        line += f", {cells}x{cells} cells"
        grid = term.cells.grid
        if grid is not None and cells > grid:
            line += f" pooled to {grid}x{grid}"
        if term.cells.points is not None:
            line += f" sampled at {term.cells.points} points"
        if term.cells.border:
            line += f", without {term.cells.border} at each edge"
    if term.checkpoint_head:
        line += ", head recomputed in the backward pass"
    return line


def batches_from(
    source: ImageSource, recipe: Recipe, settings: Settings, in_channels: int, out: Path, start: int
) -> Iterable[ViewBatch]:
    """Return this process's batches from step `start` on."""
    return make_loader(
        source,
        recipe.views,
        global_batch=settings.global_batch,
        total_steps=settings.total_steps,
        seed=settings.seed,
        start_step=start,
        rank=rank(),
        world_size=world_size(),
        micro_batches=settings.accumulate,
        in_channels=in_channels,
        num_workers=settings.workers,
        skipped_file=out / SKIPPED,
    )


def views_of(batch: ViewBatch, recipe: Recipe, device: torch.device) -> list[View]:
    """Return a batch's views on the device."""
    return to_views(batch, recipe.views, device)


def knn_of(asked: Mapping[str, Any], recipe: Recipe, settings: Settings) -> Knn | None:
    """Return what measures kNN on labelled images; None where there are none."""
    if asked["knn_data"] is None:
        return None
    # Reading labelled images takes a while to import.
    from dovetail.transfer.machine import machine
    from dovetail.transfer.online import OnlineKnn

    mean, std = statistics(recipe.views, asked["in_channels"])
    size = recipe.views.views[0].size_px
    where = machine(settings.accelerator, "bf16" if settings.precision == "bf16-mixed" else "float32")
    knn = OnlineKnn(asked["knn_data"], size=size, mean=mean, std=std, machine=where)
    if knn.note and rank() == 0:
        print(knn.note)
    return knn


def dense_of(asked: Mapping[str, Any], recipe: Recipe, settings: Settings, network: Network) -> Dense | None:
    """Return what measures maps on labelled pixels; None where there are none."""
    if asked["dense_data"] is None:
        return None
    from dovetail.transfer.dense.online import OnlineDense
    from dovetail.transfer.machine import machine

    mean, std = statistics(recipe.views, asked["in_channels"])
    where = machine(settings.accelerator, "bf16" if settings.precision == "bf16-mixed" else "float32")
    size = recipe.views.views[0].size_px
    dense = OnlineDense(asked["dense_data"], network, size=size, mean=mean, std=std, machine=where)
    if dense.note and rank() == 0:
        print(dense.note)
    return dense


@rank_zero_only
def report_of(
    options: Mapping[str, Any], recipe: Recipe, network: Network, source: ImageSource, settings: Settings, out: Path
) -> Callback | None:
    """Return what writes the run's page as it goes; None where none is wanted or none can be prepared."""
    minutes = options["report_every_minutes"]
    if minutes <= 0:
        return None
    try:
        # Drawing takes a second to import.
        from dovetail.report.live import ReportWriter
        from dovetail.report.page import Page, Subject

        text, total = (out / "recipe.txt").read_text(encoding="utf-8"), settings.total_steps
        subject = Subject(out, options, recipe, text, source, total, textwrap.dedent(example(network, out)))
        with torch.random.fork_rng(devices=[]):  # the heads that are drawn next must not depend on the page
            return ReportWriter(Page.prepare(subject, network), every_minutes=minutes)
    except Exception as error:  # a page is no reason for a run not to start
        log.warning("The run's page cannot be prepared (%s: %s); the run goes on.", type(error).__name__, error)
        return None


@rank_zero_only
def export_run(learner: Learner, options: Mapping[str, Any], settings: Settings, out: Path) -> None:
    """Write the weights and say how to load them."""
    network = learner.exported
    mean, std = statistics(learner.recipe.views, options["in_channels"])
    extra: dict[str, Any] = {
        "model": options["model"] if isinstance(options["model"], str) else None,
        "steps": settings.total_steps,
    }
    if options.get("value_range"):
        extra["value_range"] = list(options["value_range"])
    fresh = out / f"{EXPORTED}.tmp"
    try:
        save_exported(network, fresh, method=options["method"], extra=extra, mean=mean, std=std)
        (out / EXPORTED).mkdir(exist_ok=True)
        for file in sorted(fresh.iterdir()):  # each whole or absent, whenever the run is killed
            file.replace(out / EXPORTED / file.name)
        flush_folder(out / EXPORTED)
        fresh.rmdir()
    except (OSError, SafetensorError) as error:
        raise DovetailError(
            f"The weights could not be written to {out / EXPORTED} ({error}); make room there and add --resume."
        ) from error
    print(f"\nThe {learner.recipe.export}'s weights are in {out / EXPORTED}. To fine-tune them:\n")
    print(example(network, out))


def example(network: Network, out: Path) -> str:
    """Return Python that makes the model and loads the run into it, ready to paste."""
    call, construction = network.constructor, Construction.parse(network.constructor)
    lines = ["    import dovetail"]
    if construction is None:
        lines.append("    model = ...  # your own module, as it was given")
    else:
        module = construction.path.rpartition(".")[0]
        lines += [
            f"    import {IMPORTED_AS.get(module, module)}",
            "",
            f"    model = {call}  # with your number of classes",
        ]
    lines.append(f"    print(dovetail.load_into(model, {str(out)!r}))")
    return "\n".join(lines)


IMPORTED_AS = {"smp": "segmentation_models_pytorch as smp"}
