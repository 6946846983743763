"""Checkpoints in pieces, of runs whose weights are cut over processes: a folder into which each process writes its own.

    last.ckpt/state.pt        what is whole: step, settings, buffers, and size and checksum of the other files
    last.ckpt/.metadata       which part of which tensor is where
    last.ckpt/__0_0.distcp    the parts of the first process, and so on

Parts and index are as PyTorch's `torch.distributed.checkpoint` has them, so that any number of processes reads them,
each what it needs. The index is a pickle, which may carry code: it is read by an unpickler that knows nothing but what
an index is made of. The parts are read as tensors alone, and `state.pt` is a file as `dovetail.train.checkpoints` has.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from dovetail.distributed import rank, world_size
from dovetail.errors import DovetailError, RunError
from dovetail.files.finite import check_finite
from dovetail.train.parts import laid_out_as
from dovetail.train.sealed import digest_of, flush_folder, read_sealed, write_sealed

STATE, INDEX = "state.pt", ".metadata"
PIECES = "pieces"
"""Of a state without its cut tensors: their names, "learner/NAME" and "optimiser/PARAMETER/KEY"."""

FOLDER = "folder"
"""Of such a state, read: where the tensors are."""

INDEX_CLASSES = {
    "torch": {"Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "StorageMeta", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata"),
        *("MetadataIndex", "_MEM_FORMAT_ENCODING"),
    },
}

T = TypeVar("T")


def write(state: Mapping[str, Any], folder: Path) -> None:
    """Write `state` into the empty `folder`, which all processes see; every process has to call it.

    Raises:
        OSError: In every process, when one of them cannot write its part.
    """
    cut = cut_tensors(state)
    try:
        state_dict_saver.save(dict(cut), storage_writer=PieceWriter(folder, thread_count=1, sync_files=True))
    except CheckpointException as error:
        raise OSError("; ".join(first_line(wrapped[0]) for wrapped in error.failures.values())) from error
    own = together(lambda: {path.name: digest_of(path) for path in folder.glob(f"__{rank()}_*")})

    def finish() -> None:
        if rank() == 0:
            sums = {name: digest for part in own for name, digest in part.items()}
            sums[INDEX] = digest_of(folder / INDEX)
            files = {name: [(folder / name).stat().st_size, digest] for name, digest in sums.items()}
            write_sealed({**without(state, cut), PIECES: list(cut), "files": files}, folder / STATE)
            flush_folder(folder)

    together(finish)


def together(action: Callable[[], T]) -> list[T]:
    """Return what `action` gives in each process; where it raises in one, raise in all.

    Raises:
        OSError: With what the first process that failed said.
    """
    try:
        answer: tuple[T | None, str] = action(), ""
    except (OSError, RuntimeError, DovetailError) as error:
        answer = None, first_line(error) or type(error).__name__
    answers: list[Any] = [answer]
    if world_size() > 1:
        answers = [None] * world_size()
        dist.all_gather_object(answers, answer)
    if failed := [text for _, text in answers if text]:
        raise OSError(failed[0])
    return [value for value, _ in answers]


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return str(error).split("\n", 1)[0]


def cut_tensors(state: Mapping[str, Any]) -> dict[str, DTensor]:
    """Return the tensors of a state that are cut over processes, under the names that pieces have."""
    named = {f"learner/{name}": value for name, value in state["learner"].items()}
    for index, values in state["optimiser"]["state"].items():
        named |= {f"optimiser/{index}/{key}": value for key, value in values.items()}
    return {name: value for name, value in named.items() if isinstance(value, DTensor)}


def without(state: Mapping[str, Any], cut: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state without its cut tensors."""
    learner = {name: value for name, value in state["learner"].items() if f"learner/{name}" not in cut}
    optimiser = {
        index: {key: value for key, value in values.items() if f"optimiser/{index}/{key}" not in cut}
        for index, values in state["optimiser"]["state"].items()
    }
    return {**state, "learner": learner, "optimiser": {**state["optimiser"], "state": optimiser}}


def read(folder: Path, *, whole: bool) -> dict[str, Any]:
    """Return the state in a folder, on the processor.

    Args:
        folder: As `write` left it.
        whole: With all tensors, after every file has been checked; else without those in pieces, which `fill` reads,
            after a look at the files' sizes.

    Raises:
        RunError: When it is damaged, holds code, or is no checkpoint.
    """
    state = read_sealed(folder / STATE)
    names = state.get("files")
    if not isinstance(names, dict) or INDEX not in names or any(Path(name).name != name for name in names):
        raise RunError(f"{folder / STATE} says nothing of a checkpoint in pieces; an older one is needed.")
    for name, (size, _) in names.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise RunError(f"Checkpoint {folder} is damaged: {name} is missing or cut off; an older one is needed.")
    if not whole:
        return {**state, FOLDER: folder}
    try:
        check_files(folder, state, list(names))
    except DovetailError as error:
        raise RunError(f"{error}; an older one is needed.") from None
    reader = SafeReader(folder)
    kinds = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(kinds[name].size, dtype=kinds[name].properties.dtype) for name in state[PIECES]}  # type: ignore[union-attr]
    load_pieces(tensors, reader, alone=True)
    for name, value in tensors.items():
        put(state, name, value)
    return state


def check_files(folder: Path, state: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise `RunError` for files whose checksums do not fit."""
    for name in names:
        if digest_of(folder / name) != state["files"][name][1]:
            raise RunError(f"Checkpoint {folder} is damaged: the checksum of {name} does not fit")


def put(state: dict[str, Any], name: str, value: Tensor) -> None:
    """Put a tensor into its place in a state."""
    part, _, rest = name.partition("/")
    if part == "learner":
        state["learner"][rest] = value
    else:
        index, _, key = rest.partition("/")
        state["optimiser"]["state"][int(index)][key] = value


def fill(learner: nn.Module, optimiser: Optimizer, state: dict[str, Any]) -> None:
    """Load a state that was read without its pieces, each process what it keeps; every process has to call it.

    Raises:
        RunError: In every process, when a file is damaged or the pieces are those of another model.
    """
    folder, names = state[FOLDER], sorted(state["files"])
    try:
        together(lambda: check_files(folder, state, names[rank() :: world_size()]))
    except OSError as error:
        raise RunError(f"{error}; remove that folder, and --resume goes on from the one before.") from error
    own = learner.state_dict()
    saved = {*state["learner"], *(name.partition("/")[2] for name in state[PIECES] if name.startswith("learner/"))}
    if odd := sorted(saved ^ set(own)):
        raise RunError(f"The checkpoint does not fit this model and recipe ({odd[0]}); use the run's own config.yaml.")
    for name, value in state["learner"].items():
        own[name].copy_(laid_out_as(own[name], value))
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    targets: dict[str, Tensor] = {}
    for name in state[PIECES]:
        part, _, rest = name.partition("/")
        targets[name] = own[rest] if part == "learner" else torch.zeros_like(parameters[int(rest.split("/")[0])])
        if part != "learner":
            put(state, name, targets[name])
    load_pieces(targets, SafeReader(folder), alone=False)
    try:
        together(lambda: check_finite(own, f"Checkpoint {folder}", "remove that folder"))
    except OSError as error:
        raise RunError(f"{error}, and --resume goes on from the one before.") from error
    optimiser.load_state_dict(placed_optimiser_state(state["optimiser"], parameters))


def placed_optimiser_state(state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """Return an optimiser's state with its tensors cut and laid out as the parameters, in their order, are."""
    placed = {
        index: {key: laid_out_as(parameters[index], value) for key, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": placed}


def load_pieces(targets: dict[str, Tensor], reader: SafeReader, *, alone: bool) -> None:
    """Fill tensors, whole or cut, from the pieces of their names; with `alone` without the other processes.

    Raises:
        RunError: When one is missing or of another shape.
    """
    try:
        with warnings.catch_warnings():
            # PyTorch warns of `no_dist` even where it is what one asked for.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            state_dict_loader.load(targets, storage_reader=reader, no_dist=alone)
    except (
        CheckpointException,
        RunError,
        RuntimeError,
        ValueError,
        KeyError,
        OSError,
        pickle.UnpicklingError,
    ) as error:
        causes = [one for one, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
        raise RunError(
            f"The pieces in {reader.path} do not fit this model and recipe ({first_line(causes[0])}); use the run's "
            "own config.yaml."
        ) from error


class PieceWriter(FileSystemWriter):
    """Writes the parts and the index, without where on this machine that was."""

    def storage_meta(self) -> StorageMeta:
        """Return nothing about the folder."""
        return StorageMeta()


class SafeReader(FileSystemReader):
    """Reads a folder's index without running what it may carry, and refuses all but tensors in the folder itself."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the index.

        Raises:
            RunError: For an index that holds anything else than tensors' places.
        """
        path = Path(self.path) / INDEX
        try:
            index: Metadata = IndexUnpickler(BytesIO(path.read_bytes())).load()
            tensors = all(isinstance(entry, TensorStorageMetadata) for entry in index.state_dict_metadata.values())
            places = [(place.relative_path, place.transform_descriptors) for place in index.storage_data.values()]
        except Exception as error:  # a pickle that is none may raise anything
            raise RunError(f"{path} cannot be read ({first_line(error)}); an older checkpoint is needed.") from error
        if not tensors or any(Path(name).name != name or how for name, how in places):
            raise RunError(f"{path} lists more than tensors in its folder; an older checkpoint is needed.")
        index.storage_meta = StorageMeta(load_id=self.load_id)
        return index


class IndexUnpickler(pickle.Unpickler):
    """Knows the classes of an index and no others."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class of an index; raise `pickle.UnpicklingError` for any other name."""
        if name in INDEX_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in an index")
