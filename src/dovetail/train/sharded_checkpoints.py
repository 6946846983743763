"""Sharded checkpoints: a folder into which each process writes its parts.

    last.ckpt/state.pt        unsharded state: step, settings, buffers, and size and checksum of the other files
    last.ckpt/.metadata       index of the parts of each tensor
    last.ckpt/__0_0.distcp    parts of the first process, and so on

Parts and index have the format of `torch.distributed.checkpoint`, so any number of processes can read them, each only
what it needs. The index is a pickle, which could contain code, so a restricted unpickler reads it that only allows the
classes of an index. The parts are read as tensors only, and `state.pt` is a file of `dovetail.train.checksummed`.
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
from dovetail.train.checksummed import digest_of, flush_folder, read_sealed, write_sealed
from dovetail.train.parts import laid_out_as

STATE, INDEX = "state.pt", ".metadata"
PIECES = "pieces"
"""Key of the names of sharded tensors in a state: "learner/NAME" and "optimiser/PARAMETER/KEY"."""

FOLDER = "folder"
"""Key of the folder of the sharded tensors in a state that was read."""

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
    """Write `state` into the empty `folder`, which all processes share; every process must call it.

    Raises:
        OSError: In every process, if one of them cannot write its part.
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
    """Run `action` in every process and return its result; raises in all processes if one fails.

    Raises:
        OSError: With the message of the first process that failed.
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
    """Return the first line of an error message."""
    return str(error).split("\n", 1)[0]


def cut_tensors(state: Mapping[str, Any]) -> dict[str, DTensor]:
    """Return the sharded tensors of a state by their names in the checkpoint."""
    named = {f"learner/{name}": value for name, value in state["learner"].items()}
    for index, values in state["optimiser"]["state"].items():
        named |= {f"optimiser/{index}/{key}": value for key, value in values.items()}
    return {name: value for name, value in named.items() if isinstance(value, DTensor)}


def without(state: Mapping[str, Any], cut: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state without its sharded tensors."""
    learner = {name: value for name, value in state["learner"].items() if f"learner/{name}" not in cut}
    optimiser = {
        index: {key: value for key, value in values.items() if f"optimiser/{index}/{key}" not in cut}
        for index, values in state["optimiser"]["state"].items()
    }
    return {**state, "learner": learner, "optimiser": {**state["optimiser"], "state": optimiser}}


def read(folder: Path, *, whole: bool) -> dict[str, Any]:
    """Return the state in a folder on the CPU.

    Args:
        folder: Folder written by `write`.
        whole: Load all tensors and check every file. Otherwise only check the sizes of the files; `fill` loads the
            sharded tensors later.

    Raises:
        RunError: If the folder is damaged, contains code, or is not a checkpoint.
    """
    state = read_sealed(folder / STATE)
    names = state.get("files")
    if not isinstance(names, dict) or INDEX not in names or any(Path(name).name != name for name in names):
        raise RunError(f"{folder / STATE} does not describe a sharded checkpoint; an older one is needed.")
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
    """Raise `RunError` for files with a wrong checksum."""
    for name in names:
        if digest_of(folder / name) != state["files"][name][1]:
            raise RunError(f"Checkpoint {folder} is damaged: {name} has a wrong checksum")


def put(state: dict[str, Any], name: str, value: Tensor) -> None:
    """Insert a tensor into a state."""
    part, _, rest = name.partition("/")
    if part == "learner":
        state["learner"][rest] = value
    else:
        index, _, key = rest.partition("/")
        state["optimiser"]["state"][int(index)][key] = value


def fill(learner: nn.Module, optimiser: Optimizer, state: dict[str, Any]) -> None:
    """Load the sharded tensors of a state, each process its own parts; every process must call it.

    Raises:
        RunError: In every process, if a file is damaged or the tensors belong to another model.
    """
    folder, names = state[FOLDER], sorted(state["files"])
    try:
        together(lambda: check_files(folder, state, names[rank() :: world_size()]))
    except OSError as error:
        raise RunError(
            f"{error}; remove this folder and use --resume to continue from the previous checkpoint."
        ) from error
    own = learner.state_dict()
    saved = {*state["learner"], *(name.partition("/")[2] for name in state[PIECES] if name.startswith("learner/"))}
    if odd := sorted(saved ^ set(own)):
        raise RunError(f"The checkpoint does not match this model and recipe ({odd[0]}); use the run's config.yaml.")
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
        together(lambda: check_finite(own, f"Checkpoint {folder}", "remove this folder"))
    except OSError as error:
        raise RunError(f"{error} and use --resume to continue from the previous checkpoint.") from error
    optimiser.load_state_dict(placed_optimiser_state(state["optimiser"], parameters))


def placed_optimiser_state(state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """Return an optimiser state with its tensors sharded and strided like the parameters, in their order."""
    placed = {
        index: {key: laid_out_as(parameters[index], value) for key, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": placed}


def load_pieces(targets: dict[str, Tensor], reader: SafeReader, *, alone: bool) -> None:
    """Fill tensors, sharded or not, from the checkpoint by their names; with `alone` without other processes.

    Raises:
        RunError: If a tensor is missing or has another shape.
    """
    try:
        with warnings.catch_warnings():
            # PyTorch warns of `no_dist` even if it is requested.
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
            f"The tensors in {reader.path} do not match this model and recipe ({first_line(causes[0])}); use the run's "
            "config.yaml."
        ) from error


class PieceWriter(FileSystemWriter):
    """Writes the parts and the index without local paths."""

    def storage_meta(self) -> StorageMeta:
        """Return None, so that the path of the folder is not stored."""
        return StorageMeta()


class SafeReader(FileSystemReader):
    """Reads the index of a folder without running code; only allows tensors in the folder."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the index.

        Raises:
            RunError: If the index contains anything except the locations of tensors.
        """
        path = Path(self.path) / INDEX
        try:
            index: Metadata = IndexUnpickler(BytesIO(path.read_bytes())).load()
            tensors = all(isinstance(entry, TensorStorageMetadata) for entry in index.state_dict_metadata.values())
            places = [(place.relative_path, place.transform_descriptors) for place in index.storage_data.values()]
        except Exception as error:  # an invalid pickle may raise any exception
            raise RunError(f"{path} cannot be read ({first_line(error)}); an older checkpoint is needed.") from error
        if not tensors or any(Path(name).name != name or how for name, how in places):
            raise RunError(f"{path} refers to other data than tensors in its folder; an older checkpoint is needed.")
        index.storage_meta = StorageMeta(load_id=self.load_id)
        return index


class IndexUnpickler(pickle.Unpickler):
    """Unpickler that only allows the classes of an index."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class of an index; raise `pickle.UnpicklingError` for any other name."""
        if name in INDEX_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in an index")
