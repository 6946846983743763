"""Reading golden vectors and comparing ours with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FLOAT64_TOLERANCE = 1e-6
FLOAT32_TOLERANCE = 1e-4
EXACT = 1e-12  # indices, pointers, masks

# Results are what follows "expected" and a few that are stored without it; averaged teachers are results as well.
RESULT = re.compile(r"(^|\.)expected\.|momentum_used$|^teacher_temp_schedule|^neighbourhood\.|\.step\d+\.(loss|grad)")
BEFORE = "teacher_before_ema."


@dataclass(frozen=True)
class Golden:
    """One file of vectors: `name` as `slotcon_a`, the sidecar's content, the tensors (empty without a tensor file)."""

    name: str
    sidecar: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def config(self) -> dict[str, Any]:
        """The hyper-parameters that made the numbers."""
        return self.sidecar["config"]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name begins with `prefix.`, named without it."""
        return {name[len(prefix) + 1 :]: t for name, t in self.tensors.items() if name.startswith(prefix + ".")}

    def results(self) -> list[str]:
        """The names of all tensors that are results, so that a check has to compare them."""
        averaged = {name.replace("teacher_before_ema.", "teacher.") for name in self.tensors if BEFORE in name}
        return [name for name in self.tensors if RESULT.search(name) or name in averaged]

    def not_compared(self, comparisons: Iterable[Comparison]) -> list[str]:
        """The results that none of `comparisons` has as its expected values (told by their memory)."""
        stored = [one.expected if one.covers is None else one.covers for one in comparisons]
        seen = {(value.data_ptr(), value.numel()) for value in stored}
        results = ((name, self.tensors[name]) for name in self.results())
        return [name for name, value in results if value.numel() and (value.data_ptr(), value.numel()) not in seen]


@dataclass(frozen=True)
class Comparison:
    """Ours against the expected values.

    `tolerance` replaces the general one where the reference itself is less exact (float32 arithmetic, 8-bit pixels).
    `scale` replaces the largest expected magnitude as what the error is relative to (sums that cancel to zero).
    `covers` is the stored tensor that `expected` was made from, where it is not stored as it is compared.
    """

    what: str
    ours: Tensor
    expected: Tensor
    tolerance: float | None = None
    scale: float | None = None
    covers: Tensor | None = None

    @property
    def error(self) -> float:
        """Largest absolute difference over the largest expected magnitude."""
        if self.ours.shape != self.expected.shape:
            return float("inf")
        if self.expected.numel() == 0:
            return 0.0
        ours, expected = self.ours.detach().double(), self.expected.double()
        if not torch.isfinite(ours).all():
            return float("inf")
        scale = self.scale if self.scale is not None else float(expected.abs().max())
        return float((ours - expected).abs().max()) / max(scale, 1e-12)

    @property
    def allowed(self) -> float:
        """The largest error that counts as a match."""
        if self.tolerance is not None:
            return self.tolerance
        if not self.expected.is_floating_point():
            return EXACT
        return FLOAT64_TOLERANCE if self.expected.dtype == torch.float64 else FLOAT32_TOLERANCE


def read_folder(folder: Path) -> Iterator[Golden]:
    """Yield every file of vectors in `folder`, by name."""
    for sidecar in sorted(folder.glob("*.json")):
        tensor_file = sidecar.with_suffix(".safetensors")
        tensors = load_file(tensor_file) if tensor_file.exists() else {}
        golden = Golden(sidecar.stem, json.loads(sidecar.read_text(encoding="utf-8")), tensors)
        results = set(golden.results())
        for name, value in tensors.items():
            if value.is_floating_point() and name not in results:
                tensors[name] = value.double()  # the modules are in float64, whatever the inputs are stored in
        yield golden


def load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into `module` in float64; running statistics are the only thing that may be missing."""
    module.double()
    missing, unexpected = module.load_state_dict(dict(tensors), strict=False)
    absent = [name for name in missing if name.rsplit(".", 1)[-1] not in BUFFERS]
    if absent or unexpected:
        raise KeyError(f"missing {absent}, unexpected {unexpected}")


BUFFERS = {"running_mean", "running_var", "num_batches_tracked"}


def use_eps(module: nn.Module, *, batch_norm: float | None = None, layer_norm: float | None = None) -> None:
    """Give all normalisation layers in `module` the stored epsilons."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and batch_norm is not None:
            part.eps = batch_norm
        elif isinstance(part, nn.LayerNorm) and layer_norm is not None:
            part.eps = layer_norm


def gradients(module: nn.Module, prefix: str, expected: Mapping[str, Tensor]) -> Iterator[Comparison]:
    """Compare the gradients of `module`'s parameters with `expected` (named as the parameters).

    A bias in front of BatchNorm has a gradient of zero up to rounding, so errors are relative to at least a millionth
    of the module's largest gradient.
    """
    named = {name: parameter for name, parameter in module.named_parameters() if name in expected}
    largest = max((float(expected[name].abs().max()) for name in named), default=0.0)
    for name, parameter in named.items():
        ours = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        scale = max(float(expected[name].abs().max()), 1e-6 * largest)
        yield Comparison(f"grad {prefix}.{name}", ours, expected[name], scale=scale)
