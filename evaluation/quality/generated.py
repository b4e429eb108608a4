"""Images that `generate` wrote, as a set to judge."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.evaluation.quality.images import Pixels, Rows, regroup
from flowturbo_trt.generation.plan import PLAN
from flowturbo_trt.generation.shards import ShardedImages


def is_generated(folder: Path) -> bool:
    """Whether a folder is one of `generate`'s: it has a plan in it."""
    return (folder / PLAN).is_file()


class GeneratedImages:
    """The images of a finished run in the order of their indices; raises GenerationError for another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shards = ShardedImages.open(path)
        self.labels: NDArray[np.int64] | None = self._shards.labels
        self.size = self._shards.plan.image

    def __len__(self) -> int:
        return len(self._shards)

    def batches(self, size: int, rows: Rows | None = None) -> Iterator[Pixels]:
        return regroup(self._shards.batches(size), size, rows)
