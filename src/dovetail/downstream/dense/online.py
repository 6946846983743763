"""Evaluates the frozen feature maps of a network on labelled pixels during training, within seconds."""

from __future__ import annotations

from pathlib import Path

from dovetail.downstream.dense.maps import NetworkMaps, check_size, resized_item, resolve_taps
from dovetail.downstream.dense.options import DenseOptions
from dovetail.downstream.dense.scores import dense_scores
from dovetail.downstream.labels.labelled import InMemory, LabelledSet
from dovetail.downstream.labels.readers import open_segmentation
from dovetail.downstream.labels.subsets import shuffled
from dovetail.downstream.machine import Machine, ahead
from dovetail.errors import DataError
from dovetail.networks.network import Network
from dovetail.sizes import Size

MOST_TRAIN, MOST_TEST = 200, 100
# Far fewer cells, steps and candidates than in `evaluate dense`: compare readings within a run, not with its scores.
QUICK = DenseOptions(
    protocols=("linear", "retrieval"),
    lr=(0.03, 0.3),
    weight_decay=(1e-4,),
    steps=100,
    max_cells=20_000,
    memory=5_000,
    finest_stride=8,
)


class OnlineDense:
    """Computes the mIoU of a network's deepest encoder map and finest decoder map, by "MAP/PROTOCOL".

    Up to 200 training and 100 held-out images, always the same, are read once and kept at the size of the views.

    Args:
        data: Images with masks, as for `dovetail evaluate dense`.
        network: Network of the run. Only its taps are used.
        size: Side of the images in pixels.
        mean: Mean of each channel in [0, 1].
        std: Standard deviation of each channel.
        machine: Device and precision of the run.

    Attributes:
        note: Note on the split, may be empty.

    Raises:
        DovetailError: The layout of the data is unknown, images cannot be read, the network does not support the size,
            or it does not have three channels.
    """

    def __init__(
        self,
        data: str | Path,
        network: Network,
        *,
        size: Size,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        machine: Machine,
    ) -> None:
        check_size(network, size)
        self.at = tuple(resolve_taps(network.taps, ("auto",)))
        self.size, self.mean, self.std, self.machine = size, mean, std, machine
        try:
            found = open_segmentation(data).with_channels(network.in_channels)
            self.train, self.held_out = self._read(found.train, MOST_TRAIN), self._read(found.val, MOST_TEST)
        except DataError as error:
            if not error.found:
                raise
            raise DataError(
                f"{error.found}; save the masks of --dense-data with the classes as 0, 1, 2 and so on, or evaluate the "
                "finished run with `dovetail evaluate dense --label-map`."
            ) from error
        self.note, self.classes, self.ignore_index = found.note, found.classes, found.train.ignore_index

    def __call__(self, network: Network) -> dict[str, float]:
        """Return the mIoU in [0, 1] by map and protocol. The state of the network is restored."""
        train, test = (
            NetworkMaps(network, data, self.at, self.size, self.mean, self.std, self.machine, self.ignore_index)
            for data in (self.train, self.held_out)
        )
        scores = dense_scores(train, test, classes=self.classes, options=QUICK)
        return {f"{one.at}/{one.protocol}": one.miou.mean for one in scores}

    def _read(self, data: LabelledSet, most: int) -> InMemory:
        chosen = sorted(shuffled(len(data), 0, 0)[:most].tolist())
        items = ahead(lambda index: resized_item(data[index], self.size), chosen, threads=self.machine.threads)
        return InMemory(list(items))
