"""`pretrain`: trains a model on unlabelled images and writes a run folder with its weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from safetensors import SafetensorError

from dovetail.data.identity import identity_of, write_identity
from dovetail.data.loader import make_loader
from dovetail.data.masks import Masks, open_masks
from dovetail.data.measured_range import measured_range
from dovetail.data.measuring import measured, needs_measuring
from dovetail.data.open import open_source
from dovetail.data.reading.decode import UnreadableError
from dovetail.data.reading.values import is_percentile, use_values, values_within
from dovetail.data.sources import ImageSource
from dovetail.distributed import rank, world_size
from dovetail.durations import seconds_in
from dovetail.errors import DataError, DovetailError, OptionsError, ResourceError, counted, tell
from dovetail.files.durable import flush_folder
from dovetail.files.locking import in_use
from dovetail.networks.network import Network
from dovetail.options import takes
from dovetail.provenance import refuse_decided_in_file, refuse_network_in_file
from dovetail.recipe import Recipe
from dovetail.recipes.registry import name_of
from dovetail.recipes.spelling import refuse_other_spellings
from dovetail.run.budget import Cost, planned
from dovetail.run.choose import chosen
from dovetail.run.early import begun_before, is_first_process, requeued
from dovetail.run.folder import STREAM, Run, check_out, empty, refuse_sources_in
from dovetail.run.network import EXPORTED, begin_random, begin_with, network_for, normalised_recipe
from dovetail.run.online import dense_of, knn_of, report_of
from dovetail.run.options import PretrainOptions
from dovetail.run.resolve import Images, check_freeze, check_targets, check_views, config_of, resolved_run
from dovetail.run.resume import check_still_there, resumed
from dovetail.run.saving import save_run
from dovetail.run.stream import check_needs, is_stream, stored, with_own_images
from dovetail.run.summary import (
    announce,
    check_same_images,
    example,
    is_finished,
    next_steps,
    tell_of_source,
    told_of_checkpoint,
    told_of_skipped,
)
from dovetail.run.timing import TIMED, WARM_UP, tell_time, time_steps
from dovetail.sizes import size_in_words
from dovetail.train.checkpoints import Checkpoints
from dovetail.train.defaults import Settings
from dovetail.train.engine import train
from dovetail.train.learner import Learner
from dovetail.train.loggers import check_loggers, extra_loggers
from dovetail.train.logs import note
from dovetail.train.own import Own, trainer_arguments
from dovetail.train.reference import build_learner
from dovetail.views.batch import ViewBatch, to_views
from dovetail.views.view import View

SKIPPED = "skipped.jsonl"
SEGMENTS = "segments"
MANY_IMAGES = 1_000_000


@takes(PretrainOptions)
def pretrain(options: PretrainOptions) -> Run:
    """Pre-train a model on unlabelled images.

    Returns:
        The run. `run.load()` returns the pre-trained module.

    Raises:
        DovetailError: An option is invalid, or the run cannot be carried out.
    """
    return pretrain_with(options)


def pretrain_with(options: PretrainOptions, *, settings: bool = True, ending: bool = True) -> Run:
    """Pre-train as `pretrain` does, for a command that is more than one run.

    Args:
        options: Options of the run.
        settings: Whether to print all settings, or only a line about the length of the run.
        ending: Whether to print how to use the weights.
    """
    refuse_decided_in_file(options)
    if options.typed("method"):
        options = options.changed(method=name_of(options.method))
    refuse_other_spellings(options, options.recipe)
    if begun_before(options.out):  # the command may have --overwrite
        options = options.changed(resume=True, overwrite=False)
    first = is_first_process()
    how = {"overwrite": options.overwrite, "resume": options.resume}
    folder = check_out(options.out, create=False, **how) if first else Path(options.out)
    with in_use(folder) if first else nullcontext():
        if first:  # check again: another process may have written to the folder meanwhile
            check_out(options.out, **how)
        if options.resume:
            options = with_own_images(resumed(options, folder), folder)
            check_still_there(folder, options.data)
        options.check_complete()
        if options.overwrite:
            refuse_sources_in(folder, options)
        with values_within(() if is_percentile(options.value_range) else options.value_range):
            return execute(options, folder, shown=settings, ending=ending)


def execute(options: PretrainOptions, out: Path, *, shown: bool, ending: bool) -> Run:
    """Run the pre-training in `out`. With `overwrite`, the folder is emptied after all options have been checked."""
    if options.loggers:
        refuse_network_in_file("loggers", list(options.loggers), typed=options.typed("loggers"))
        check_loggers(options.loggers)
    own, given = Own(options.optimiser, options.schedule), {*(options.recipe or {})}
    if options.image_size is not None:
        given.add("image_size")
    trainer_arguments(options.trainer_args)
    if options.lr == "auto":
        options = options.changed(lr=own.defaults().get("lr", "auto"))
    if is_stream(options.data):
        most = images_needed(options)  # checks the options first: a stream may take hours
        options = stored(options, out, most=most, first=is_first_process(), requeued=requeued())
    tell_phase("Listing the images")
    source = open_source(options.data, fetch=options.typed("data"))
    options, range_measured = with_value_range(options, source)
    tell_phase(f"Building the model for {counted(source.num_images, 'image')}")
    torch.manual_seed(options.seed)
    network = network_for(options)
    why, budgeted = "", options.budget is not None
    if not options.resume:
        options, why = planned_run(options, source, network)
    recipe, settings, recipe_options = resolved_run(options, source, network)
    masks = masks_of(options, source, recipe, out)
    recipe = own.in_recipe(normalised_recipe(recipe, network, options))
    recipe = with_statistics(recipe, source, options, range_measured=range_measured)
    check_views(recipe, network, settings)
    check_freeze(settings, network, options.preset)
    if not options.resume:
        check_targets(recipe, settings, options)
    begin_random(network, recipe, options)
    knn, dense = knn_of(options, recipe, settings), dense_of(options, recipe, settings, network)
    begun = options.resume and Checkpoints(out / "checkpoints").last.exists()
    loaded = begin_with(network, recipe, options, needed=not begun)
    config = config_of(options, settings, recipe_options, recipe)
    make_ready(options, source, out, begun=begun, range_measured=range_measured)
    loggers = started_loggers(options, out)
    finished = begun and is_finished(out, settings)
    announce(
        config,
        recipe,
        network,
        settings,
        out,
        loaded,
        why=why,
        finished=finished,
        begun=begun,
        shown=shown,
        given=given,
    )
    network = network.following(recipe.network_rules)
    report = report_of(config, recipe, network, source, settings, out)
    learner = build_learner(recipe, network)
    to_views = partial(views_of, recipe=recipe)
    if not options.resume:
        unlogged = partial(batches_from, source, masks, recipe, settings, options.in_channels, None)
        for told in tell_time(learner, batches=unlogged, to_views=to_views, settings=settings, again=budgeted):
            note(out, told)
    result = train(
        learner,
        batches=partial(batches_from, source, masks, recipe, settings, options.in_channels, out),
        to_views=to_views,
        settings=settings,
        out=out,
        resume=options.resume,
        loggers=loggers,
        callbacks=[*([report] if report is not None else []), *options.callbacks],
        compile_networks=options.compile,
        profile=options.profile,
        knn=knn,
        dense=dense,
        own=own,
        trainer_args=options.trainer_args,
        names=lambda batch: [source.name(index) for index in batch.used.tolist() if index >= 0],
    )
    export_run(learner, config, settings, out, quiet=finished or not ending)
    return Run(out, result.steps, settings.total_steps)


def tell_phase(what: str) -> None:
    """Print what begins, as it may take long and print nothing."""
    if is_first_process():
        tell(f"{what} …")


def images_needed(options: PretrainOptions) -> int | None:
    """Check the options of a new run as far as possible without its images.

    Returns:
        The number of images that its steps use at most, or None if their number depends on that of the images.

    Raises:
        DovetailError: The model, the recipe or the settings are invalid.
    """
    network = network_for(options)
    images = Images(MANY_IMAGES)
    options, _ = chosen(options, network, images)
    recipe, settings, _ = resolved_run(options, images, network)
    check_views(recipe, network, settings)
    check_needs(recipe.views, options.masks)
    return None if options.max_steps is None else options.max_steps * settings.global_batch


def with_value_range(options: PretrainOptions, source: ImageSource) -> tuple[PretrainOptions, bool]:
    """Measure the value range of a new run if it is "percentile", or if its images do not suit their format's range.

    Returns:
        The options with the range, which is also set for this process, and whether it was measured.

    Raises:
        DataError: The range is "percentile", and no image with more than 8 bits can be read.
    """
    asked = is_percentile(options.value_range)
    if options.resume or (options.value_range and not asked):
        return options, False
    reason = "none of the first images has more than 8 bits and can be read"
    try:
        found = measured_range(source, options.in_channels, seed=options.seed)
    except UnreadableError as error:
        found, reason = None, str(error)
    if found is None or (found.fits and not asked):
        if asked:
            raise DataError(f"The value range cannot be measured, because {reason}; omit --value-range.")
        return options, False
    use_values(found.range)
    if is_first_process():
        tell(str(found))
    return options.changed(value_range=list(found.range)), True


def with_statistics(
    recipe: Recipe, source: ImageSource, options: PretrainOptions, *, range_measured: bool = False
) -> Recipe:
    """Measure mean and standard deviation over some images if there are none that suit the images.

    Those of the recipe are for RGB. They suit neither another number of channels nor values of a measured range, unless
    the mean is specified or the starting weights were trained with it.
    """
    free = range_measured and not options.mean and options.init is None
    if options.resume or not (free or needs_measuring(recipe.views, options.in_channels)):
        return recipe
    tell_phase("Measuring the mean and standard deviation of the first images")
    found = measured(source, options.in_channels, seed=options.seed)
    if found is None:
        return recipe
    return replace(recipe, views=replace(recipe.views, mean=found[0], std=found[1]))


def planned_run(options: PretrainOptions, source: ImageSource, network: Network) -> tuple[PretrainOptions, str]:
    """Fill in unspecified options, plan the run into its budget, print and return the choices with their reasons."""
    began = time.monotonic()
    options, why = chosen(options, network, source)
    if options.budget is not None:
        seconds, measure = seconds_in(options.budget), partial(cost_of, source=source, network=network)
        options, told = planned(options, network, lambda: seconds - (time.monotonic() - began), measure)
        why = f"{why} {told}".strip()
    network.image_size = options.image_size or network.image_size  # the exported model is used with this size
    if why and is_first_process():
        tell(why)
    return options, why


def cost_of(options: PretrainOptions, source: ImageSource, network: Network) -> Cost:
    """Return the cost of a run with these options, timed on copies."""
    size = "" if options.image_size is None else f" on views of {size_in_words(options.image_size)} px"
    tell_phase(f"Timing {WARM_UP + TIMED} steps{size}, to fit the run into {options.budget}")
    torch_state = torch.get_rng_state()
    recipe, settings, _ = resolved_run(options, source, network)
    if settings.world_size > 1:
        raise OptionsError("--budget supports runs of one process only; use --max-steps or --devices 1 instead.")
    check_views(recipe, network, settings)
    learner = build_learner(recipe, copy.deepcopy(network).following(recipe.network_rules))
    torch.set_rng_state(torch_state)
    masks = masks_of(options, source, recipe, None)
    batches = partial(batches_from, source, masks, recipe, settings, options.in_channels, None)
    found = time_steps(learner, batches=batches, to_views=partial(views_of, recipe=recipe), settings=settings)
    return Cost(found.seconds, settings.total_steps)


def make_ready(options: PretrainOptions, source: ImageSource, out: Path, *, begun: bool, range_measured: bool) -> None:
    """Empty the folder if it is to be overwritten, and save the identity of the images."""
    identity = identity_of(source)
    first = is_first_process()
    if options.resume:
        check_same_images(identity, out, moved=options.typed("data"), begun=begun)
    if options.overwrite and first:
        empty(out)
    if first:
        tell_of_source(source, check_range=not (range_measured or options.resume))
        write_identity(out, identity)


def started_loggers(options: PretrainOptions, out: Path) -> list[Logger]:
    """Return the requested loggers. If a logger cannot be started, the folder of a new run is left empty."""
    try:
        return extra_loggers(options.loggers, out)
    except DovetailError:
        if not options.resume and is_first_process():
            empty(out, keep={STREAM})
        raise


def masks_of(options: PretrainOptions, source: ImageSource, recipe: Recipe, out: Path | None) -> Masks | None:
    """Return the masks that the recipe needs, and check its other side data. The run folder `out` caches them."""
    cache = None if out is None else out / SEGMENTS
    return open_masks(options.masks, source, recipe.views, channels=options.in_channels, cache=cache)


def batches_from(
    source: ImageSource,
    masks: Masks | None,
    recipe: Recipe,
    settings: Settings,
    in_channels: int,
    out: Path | None,
    start: int,
) -> Iterable[ViewBatch]:
    """Return this process's batches from step `start` on. Unreadable images are logged in the run folder `out`."""
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
        skipped_file=None if out is None else out / SKIPPED,
        masks=masks,
    )


def views_of(batch: ViewBatch, device: torch.device, *, recipe: Recipe) -> list[View]:
    """Return the views of a batch on the device."""
    return to_views(batch, recipe.views, device)


@rank_zero_only
def export_run(
    learner: Learner, config: PretrainOptions, settings: Settings, out: Path, *, quiet: bool = False
) -> None:
    """Export the weights and, unless `quiet`, print how to load them."""
    fresh = out / f"{EXPORTED}.tmp"
    try:
        save_run(learner, config, fresh, steps=settings.total_steps)
        (out / EXPORTED).mkdir(exist_ok=True)
        for file in sorted(fresh.iterdir()):  # each file is replaced atomically
            file.replace(out / EXPORTED / file.name)
        flush_folder(out / EXPORTED)
        fresh.rmdir()
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"The weights cannot be written to {out / EXPORTED} ({error}); free disk space and add --resume."
        ) from error
    if quiet:
        return
    if skipped := told_of_skipped(out / SKIPPED):
        tell(skipped)
        note(out, skipped.strip())
    tell(f"\nThe weights of the {learner.recipe.export} are in {out / EXPORTED}. To fine-tune them:\n")
    tell(example(learner.exported, out))
    note(out, f"The run has finished. The weights of the {learner.recipe.export} are in {out / EXPORTED}.")
    checkpoints = Checkpoints(out / "checkpoints")
    checkpoints.prune()
    tell(told_of_checkpoint(checkpoints.last, settings))
    tell(next_steps(out, config.init))
