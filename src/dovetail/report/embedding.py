"""`dovetail embed`: writes one feature vector per image.

The vector is the class token of a ViT, or the mean over the encoder's deepest feature map. Shapes: N images,
C channels, S x S pixels, D dimensions.
"""

from __future__ import annotations

import importlib
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dovetail.data.open import open_source
from dovetail.data.reading.decode import UnreadableError
from dovetail.data.reading.values import all_levels, value_range, values_within
from dovetail.data.sources import ImageSource
from dovetail.downstream.machine import Machine, ahead, machine, normalised
from dovetail.downstream.probe.features import Features
from dovetail.downstream.progress import progress
from dovetail.downstream.start import Source, source_of, values_of_run
from dovetail.errors import DataError, ResourceError, tell
from dovetail.files.durable import write_whole
from dovetail.files.locking import in_use
from dovetail.files.writing import aside, writing
from dovetail.options import takes
from dovetail.provenance import refuse_code_in_file
from dovetail.report.early import check_embed
from dovetail.report.embedding_map import add_map, page_for_map
from dovetail.report.options import EmbedOptions
from dovetail.report.pixels import central_crop
from dovetail.sizes import Size


class Embeddings(NamedTuple):
    """`vectors` [N, D] float32 of the images with `indices` in a source. `skipped` has (name, reason) pairs."""

    vectors: NDArray[np.float32]
    indices: list[int]
    skipped: list[tuple[str, str]]
    in_channels: int


@takes(EmbedOptions)
def embed(options: EmbedOptions) -> Path:
    """Write one feature vector per image: the class token of a ViT, or the mean of the encoder's deepest feature map.

    Returns:
        Path of the output file.

    Raises:
        DovetailError: The suffix is unsupported, the file cannot be written, the run has no weights, no image is
            readable, or `page_map` is set and the run has no page.
    """
    refuse_code_in_file(options)
    check_embed(options)
    path = Path(options.out)
    if path.suffix == ".parquet":
        parquet_library()
    page = None if options.page_map == "none" else page_for_map(options.run, options.page_map)
    with in_use(path.parent, keep=False), pages_in_use(page):
        source = open_source(options.data)
        if source.left_out:
            tell(source.left_out)
        found = embeddings_of(
            options.run,
            source,
            side_px=options.side_px,
            batch_size=options.batch_size,
            model=options.model,
            encoder=options.encoder,
            where=machine(options.accelerator),
        )
        write_embeddings(path, [source.name(index) for index in found.indices], found.vectors)
        count, width = found.vectors.shape
        unread = (
            f", skipped {len(found.skipped)} unreadable images such as {found.skipped[0][0]}" if found.skipped else ""
        )
        tell(f"{path}: {count} embeddings of {width} dimensions{unread}")
        if page is not None and options.page_map != "none":
            with values_within(values_of_run(options.run)):
                shown = add_map(
                    page, options.page_map, source, found.indices, found.vectors, in_channels=found.in_channels
                )
            tell(f"{page}: a map of {shown} images")
    return path


def pages_in_use(page: Path | None) -> AbstractContextManager[None]:
    """Lock the run whose page gets a map, because a run in progress would overwrite its page."""
    return nullcontext() if page is None else in_use(page.parent, otherwise="omit --page-map")


def write_embeddings(path: Path, names: list[str], vectors: NDArray[np.float32]) -> None:
    """Write embeddings [N, D] and the names of their images to a .parquet file, or to a .npy and a .json file."""
    with writing(path, option="out"):
        if path.suffix == ".parquet":
            with aside(path) as fresh:
                write_parquet(parquet_library(), fresh, names, vectors)
        else:
            with aside(path) as fresh, fresh.open("wb") as file:
                np.save(file, vectors)
            write_whole(path.with_suffix(".paths.json"), json.dumps(names, indent=0) + "\n")


def embeddings_of(
    run: str | Path,
    source: ImageSource,
    *,
    side_px: Size | None,
    batch_size: int,
    where: Machine | None = None,
    model: Any = None,
    encoder: str | None = None,
) -> Embeddings:
    """Return the embeddings of all readable images of a source, in order. `model` is the user's own module.

    Raises:
        DovetailError: The run has no weights, or no image is readable.
    """
    weights = source_of(run, model, image_size=side_px, encoder=encoder)
    where = where or machine()
    features = Features(weights.network("all"))
    where.place(features).eval()

    def read(index: int) -> Tensor | str:
        try:
            with all_levels():
                pixels = central_crop(source.open(index, weights.in_channels), weights.image_size)
            return pixels if value_range() is None else pixels.float()  # a batch has one dtype
        except UnreadableError as error:
            return str(error)

    vectors: list[Tensor] = []
    indices: list[int] = []
    skipped: list[tuple[str, str]] = []
    waiting: list[Tensor] = []
    with values_within(values_of_run(run)), progress("embedding", source.num_images) as advance:
        for index, pixels in enumerate(ahead(read, range(source.num_images), threads=where.threads)):
            advance(1)
            if isinstance(pixels, str):
                skipped.append((source.name(index), pixels))
                continue
            indices.append(index)
            waiting.append(pixels)
            if len(waiting) == batch_size:
                vectors.append(_forward(features, waiting, weights, where))
                waiting = []
    if waiting:
        vectors.append(_forward(features, waiting, weights, where))
    if not vectors:
        raise DataError(f"None of the {source.num_images} images can be read ({skipped[0][1]}); check the data.")
    return Embeddings(torch.cat(vectors).numpy(), indices, skipped, weights.in_channels)


@torch.no_grad()
def _forward(model: Features, crops: list[Tensor], weights: Source, where: Machine) -> Tensor:
    """Return features [B, D] float32 on the CPU."""
    pixels = normalised(torch.stack(crops).to(where.device), weights.mean, weights.std)
    with where.autocast():
        found: Tensor = model(pixels)
    return found.float().cpu()


def parquet_library() -> Any:
    """Import pyarrow. Raise `ResourceError` if it is not installed."""
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise ResourceError(
            "Parquet files need the package pyarrow; install it with `pip install 'dovetail-ssl[parquet]'`, or write a "
            ".npy file."
        ) from None


def write_parquet(arrow: Any, path: Path, names: list[str], vectors: NDArray[np.float32]) -> None:
    """Write the columns path (string) and embedding (fixed-size lists of float32)."""
    flat = arrow.array(vectors.reshape(-1), type=arrow.float32())
    lists = arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    texts = arrow.array([name.encode("utf-8", "replace").decode() for name in names], type=arrow.string())
    table = arrow.table({"path": texts, "embedding": lists})
    importlib.import_module("pyarrow.parquet").write_table(table, path)
