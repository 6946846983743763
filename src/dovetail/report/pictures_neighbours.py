"""Contact sheet of nearest neighbours among the images of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.report.embedding import embeddings_of
from dovetail.report.pixels import images_in, thumbnail
from dovetail.report.sheets import Sheet, rows_of, short
from dovetail.sizes import Size

THUMBNAIL_PX = 240


def neighbours_sheet(
    run: str | Path, images: Any, *, most: int, count: int, side_px: Size | None, batch_size: int
) -> Sheet:
    """Return a contact sheet: each row has an image and its nearest neighbours with their cosine similarity.

    Raises:
        DovetailError: There are fewer than two readable images.
    """
    source = images_in(images)
    found = embeddings_of(run, source, side_px=side_px, batch_size=batch_size)
    rows_of(found.indices, 2, "A sheet of neighbours")
    queries = np.linspace(0, len(found.indices) - 1, min(most, len(found.indices))).round().astype(int)
    order, cosine = nearest(found.vectors, queries, count)
    sheet = Sheet(
        len(queries),
        1 + order.shape[1],
        title=f"Images and their nearest neighbours among {len(found.indices):,}, with the cosine similarity",
    )
    for row, query in enumerate(queries):
        for column, item in enumerate([query, *order[row]]):
            index = found.indices[item]
            near = "" if column == 0 else f"\n{cosine[row, column - 1]:.2f}"
            words = f"{short(source.name(index))}{near}"
            picture = thumbnail(source.open(index, found.in_channels), THUMBNAIL_PX)
            sheet.show(row, column, picture, title=words, smooth=True)
    return sheet


def nearest(
    vectors: NDArray[np.float32], queries: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return up to `count` nearest other rows of `vectors` [N, D] for each of Q queries, and their similarities."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosine = unit[queries] @ unit.T  # [Q, N]
    cosine[np.arange(len(queries)), queries] = -np.inf  # not itself
    order = np.argsort(-cosine, axis=1, kind="stable")[:, : min(count, len(vectors) - 1)]
    return order, np.take_along_axis(cosine, order, axis=1)
