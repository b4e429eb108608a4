"""One of several processes that train together: what the tests of `distributed` start, two at a time.

    python -m flowturbo_trt.tests.training.one_process FOLDER [MISHAP [RANK [SCHEDULES]]]

Trains for six steps as `train` does, on policy if there are schedules; MISHAP befalls process RANK in the
third step.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from flowturbo_trt.commands.common import Console, reported
from flowturbo_trt.models.sit import SiT, SiTConfig
from flowturbo_trt.training.config import TrainingConfig
from flowturbo_trt.training.data import LatentCache
from flowturbo_trt.training.distributed import joined
from flowturbo_trt.training.train_refiner import train_refiner

SHAPE = SiTConfig(4, 2, 2, hidden_size=16, depth=1, num_heads=2, num_classes=3)
CONFIG = TrainingConfig(steps=6, batch=8, accumulate=2, learning_rate=1e-3, clip=0.05, guidance_high=3)


def some_predictor() -> SiT:
    torch.manual_seed(0)
    network = SiT(SHAPE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.requires_grad_(False).eval()


def some_cache() -> LatentCache:
    random = torch.Generator().manual_seed(1)
    mean = torch.randn(20, 2, 4, 4, generator=random)
    return LatentCache(mean, 0.1 * torch.rand(mean.shape, generator=random), torch.arange(20) % 3)


def fail() -> None:
    raise OSError("the disk of this process is gone")


def interrupt() -> None:
    raise KeyboardInterrupt


def vanish() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


MISHAPS: dict[str, Callable[[], None]] = {
    "fail": fail,
    "interrupt": interrupt,
    "vanish": vanish,
    "nan": lambda: None,
}


class Unlucky:
    """A source of latents that something happens to."""

    def __init__(self, source: LatentCache, mishap: str | None) -> None:
        self._source = source
        self._mishap = mishap
        self.shape = source.shape
        self.labels = source.labels
        self.provenance: Mapping[str, str] = {}

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, step: int, size: int, seed: int, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        latents, labels = self._source.batch(step, size, seed, rows)
        if step != 2 or self._mishap is None:
            return latents, labels
        MISHAPS[self._mishap]()
        return latents * float("nan"), labels


def main(folder: Path, mishap: str | None = None, rank: int = 1, on_policy: str = "") -> None:
    torch.set_num_threads(1)
    with reported(Console(as_json=False, verbosity=0)), joined("cpu") as group:
        source = Unlucky(some_cache(), mishap if group.rank == rank else None)
        config = replace(CONFIG, on_policy=on_policy)
        train_refiner(some_predictor(), None if on_policy else source, config, folder, group=group)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3], *map(int, sys.argv[3:4]), *sys.argv[4:5])
