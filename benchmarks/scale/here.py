"""What can be measured here: photographs a core loads, and one process against two.

python -m benchmarks.scale.here            about two minutes; writes benchmarks/results/scale_here.json
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

from benchmarks.scale.measure import START, random_views
from dovetail.data.loader import ViewDataset
from dovetail.data.reading.decode import LazyImage, open_bytes
from dovetail.data.sources import DatasetSource
from dovetail.distributed import world_size
from dovetail.networks.build import build_network
from dovetail.recipes.table import build
from dovetail.train.engine import buffers_option
from dovetail.train.learner import Learner

FILE = Path(__file__).parents[1] / "results" / "scale_here.json"
PHOTOGRAPH = (500, 375)
SMALL = {"hidden": 128, "dim": 32, "queue": 256, "image_size": 64}
BATCH = 16
ROUNDS = 40


class Encoded(DatasetSource):
    """Photographs as JPEGs in memory, so that no disk is measured."""

    def encoded(self, index: int) -> bytes:
        """Return the bytes of a file."""
        content: bytes = self._dataset[index]
        return content

    def open(self, index: int, channels: int) -> LazyImage:
        """Return a photograph that is decoded now."""
        return open_bytes(self.encoded(index), channels)


def photograph(seed: int) -> bytes:
    """Return a JPEG with the detail of a photograph: noise on all scales."""
    rng = np.random.default_rng(seed)
    width, height = PHOTOGRAPH
    total = np.zeros((height, width, 3), np.float32)
    for side in (4, 16, 64, 256):
        coarse = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize(PHOTOGRAPH, Image.Resampling.BICUBIC), np.float32) / side**0.5
    total = 255 * (total - total.min()) / (total.max() - total.min())
    file = io.BytesIO()
    Image.fromarray(total.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def loaded(method: str, model: str) -> float:
    """Return the photographs that one core makes views of in a second, by processor time."""
    taps = build_network(model).taps
    dataset = ViewDataset(Encoded([photograph(seed) for seed in range(8)]), build(method, taps).views, seed=0)
    dataset[(0, 0)]
    begin = time.process_time()
    for index in range(48):
        dataset[(0, index % 8)]
    return 48 / (time.process_time() - begin)


def step_seconds(batch: int) -> float:
    """Return the processor time of the fastest of a few steps of a small DenseCL, with DDP on several processes.

    Of this process and its threads; what else the machine does is not in it, and neither is waiting.
    """
    torch.manual_seed(0)
    network = build_network("timm/test_resnet", image_size=64)
    learner = Learner(build("densecl", network.taps, SMALL), network)
    views = random_views(learner.recipe.views, batch)
    module = DistributedDataParallel(learner, **{buffers_option(): False}) if world_size() > 1 else learner
    seconds = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        module(views, START).total.backward()
        learner.update()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def collective_seconds(numbers: int) -> float:
    """Return the fastest of a few all-reduces."""
    value, seconds = torch.zeros(numbers), []
    for _ in range(ROUNDS):
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(value)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def one_of_two() -> None:
    """Measure as one of two processes, and print as the first one."""
    dist.init_process_group("gloo")
    large = 1 << 22
    found = {
        "two_processes": step_seconds(BATCH // 2),
        "latency": collective_seconds(1),
        "link": 4 * large / collective_seconds(large),  # a ring of two sends each byte once
    }
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        one_of_two()
        return
    found = {
        "loaded two views": loaded("simclr", "timm/resnet50"),
        "loaded ten views": loaded("dino", "timm/vit_small_patch16_224"),
        "one_process": step_seconds(BATCH),
        "half_alone": step_seconds(BATCH // 2),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scale.here"],
            env=common | {"RANK": str(rank)},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = processes[0].communicate()[0]
    if processes[0].returncode or processes[1].wait():
        raise SystemExit("one of the two processes failed")
    network = build_network("timm/test_resnet", image_size=64)
    learner = Learner(build("densecl", network.taps, SMALL), network)
    found["gradient_bytes"] = 4 * sum(value.numel() for value in learner.parameters() if value.requires_grad)
    FILE.write_text(json.dumps(found | json.loads(said), indent=1) + "\n")
    print(FILE.read_text())


if __name__ == "__main__":
    main()
