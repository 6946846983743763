"""lightly's side of `benchmarks.speed.training` and `.gpu`, in a process of its own.

    METHOD PHOTOGRAPHS BATCH STEPS [NETWORK WORKERS DEVICE]

The loops of its examples (float32, standard memory layout, its transforms and losses), with the same timm networks and
widths as ours. On a GPU in bfloat16, as ours is.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from lightly.data import LightlyDataset
from lightly.loss import DINOLoss, NTXentLoss
from lightly.models import utils
from lightly.models.modules import DenseCLProjectionHead, DINOProjectionHead, SimCLRProjectionHead
from lightly.transforms import DenseCLTransform, DINOTransform, SimCLRTransform
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from benchmarks.speed.training import NETWORKS, WARM_UP

Step = Callable[[list[Tensor]], Tensor]


class SimCLR(nn.Module):
    """Its SimCLR example."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self.backbone = timm.create_model(network, num_classes=0)
        self.head = SimCLRProjectionHead(self.backbone.num_features, 512, 128)
        self.criterion = NTXentLoss()

    def step(self, views: list[Tensor], number: int) -> Tensor:
        """Return the loss of two views."""
        first, second = (self.head(self.backbone(view).flatten(start_dim=1)) for view in views)
        loss: Tensor = self.criterion(first, second)
        return loss


class DenseCL(nn.Module):
    """Its DenseCL example."""

    def __init__(self, network: str) -> None:
        super().__init__()
        whole = timm.create_model(network, num_classes=0, global_pool="")
        self.backbone = whole
        self.dense_head = DenseCLProjectionHead(whole.num_features, 512, 128)
        self.global_head = DenseCLProjectionHead(whole.num_features, 512, 128)
        self.teacher = nn.ModuleList(copy.deepcopy(part) for part in (whole, self.dense_head, self.global_head))
        self.teacher.requires_grad_(False)
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.criteria = nn.ModuleList(NTXentLoss(memory_bank_size=(4096, 128), temperature=0.2) for _ in range(2))

    def features(self, parts: Any, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the backbone's cells, the image's projection, and the cells' projections."""
        backbone, dense, image = parts
        maps = backbone(view)
        cells = maps.flatten(start_dim=2).permute(0, 2, 1)
        return cells, image(self.pool(maps).flatten(start_dim=1)), dense(cells)

    def step(self, views: list[Tensor], number: int) -> Tensor:
        """Return the loss of two views."""
        own = (self.backbone, self.dense_head, self.global_head)
        momentum = cosine_schedule(number, 1000, 0.996, 1)
        for mine, moving in zip(own, self.teacher, strict=True):
            utils.update_momentum(mine, moving, m=momentum)
        cells, image, dense = self.features(own, views[0])
        with torch.no_grad():
            shuffled, order = utils.batch_shuffle(views[1])
            other, other_image, other_dense = (
                utils.batch_unshuffle(part, order) for part in self.features(self.teacher, shuffled)
            )
        dense_of_other = utils.select_most_similar(cells, other, other_dense).flatten(end_dim=1)
        dense = dense.flatten(end_dim=1)
        loss: Tensor = 0.5 * (self.criteria[0](image, other_image) + self.criteria[1](dense, dense_of_other))
        return loss


class DINO(nn.Module):
    """Its DINO example, on a ViT."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self.backbone = timm.create_model(network, num_classes=0, dynamic_img_size=True)
        width = self.backbone.num_features
        self.head = DINOProjectionHead(width, 512, 64, 2048, freeze_last_layer=1)
        self.teacher = copy.deepcopy(self.backbone).requires_grad_(False)
        self.teacher_head = DINOProjectionHead(width, 512, 64, 2048).requires_grad_(False)
        self.criterion = DINOLoss(output_dim=2048, warmup_teacher_temp_epochs=5)

    def step(self, views: list[Tensor], number: int) -> Tensor:
        """Return the loss of two global and six local views."""
        momentum = cosine_schedule(number, 1000, 0.996, 1)
        utils.update_momentum(self.backbone, self.teacher, m=momentum)
        utils.update_momentum(self.head, self.teacher_head, m=momentum)
        with torch.no_grad():
            targets = [self.teacher_head(self.teacher(view).flatten(start_dim=1)) for view in views[:2]]
        answers = [self.head(self.backbone(view).flatten(start_dim=1)) for view in views]
        loss: Tensor = self.criterion(targets, answers, epoch=0)
        return loss


SIDES: dict[str, tuple[type[Any], Callable[[], Any]]] = {
    "simclr": (SimCLR, SimCLRTransform),
    "densecl": (DenseCL, DenseCLTransform),
    "dino": (DINO, DINOTransform),
}


def forever(loader: Any) -> Iterator[Any]:
    """Yield batches, epoch after epoch."""
    for _ in itertools.count():
        yield from loader


def main() -> None:
    """Train, and print the images a second after the warm-up as JSON."""
    method, photographs, batch, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    network, workers, device = sys.argv[5:8] or (NETWORKS[method], 1, "cpu")
    torch.manual_seed(0)
    kind, transform = SIDES[method]
    model = kind(network).to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3) if method == "dino" else torch.optim.SGD(trained, lr=0.06)
    data = LightlyDataset(photographs, transform=transform())
    loader = torch.utils.data.DataLoader(
        data, batch_size=batch, shuffle=True, drop_last=True, num_workers=int(workers), persistent_workers=True
    )
    began = 0.0
    for number, (views, _, _) in enumerate(itertools.islice(forever(loader), steps), start=1):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = model.step([view.to(device, non_blocking=True) for view in views], number)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if number in (WARM_UP, steps) and device == "cuda":
            torch.cuda.synchronize()
        if number == WARM_UP:
            began = time.perf_counter()
    print(json.dumps({"images_per_second": (steps - WARM_UP) * batch / (time.perf_counter() - began)}))


if __name__ == "__main__":
    main()
