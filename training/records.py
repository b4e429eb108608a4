"""What is told of a run's steps: rows of metrics, and TensorBoard's event files."""

import importlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.training.config import TrainingError

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


@dataclass(frozen=True)
class Row:
    """One step, counted from 1: the loss before it, its learning rate, its gradient's norm unclipped.

    No times: resumed runs have the same rows, byte for byte. TensorBoard has the seconds.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float


def append_rows(folder: Path, rows: Sequence[Row]) -> None:
    with (folder / METRICS).open("a") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


class EventFiles:
    """TensorBoard's record of a run, written as steps are taken.

    `step` is where the run stands: steps after it, of a run that ended before it could save them, are
    taken back. Raises TrainingError where TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            writing = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise TrainingError(
                f"TensorBoard cannot be imported ({error}); pip install 'flowturbo_trt[train]', or say "
                "--no-tensorboard"
            ) from error
        self._writer: Any = writing.SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)
        self._before = time.perf_counter()

    def add(self, row: Row) -> None:
        now = time.perf_counter()
        values = asdict(row) | {"seconds": now - self._before}
        self._before = now
        step = values.pop("step")
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def add_images(self, images: NDArray[np.uint8], step: int) -> None:
        """Add images (N,H,W,3)."""
        self._writer.add_images("preview", images, step, dataformats="NHWC")
        # Drawing them is not the next step's time.
        self._before = time.perf_counter()

    def close(self) -> None:
        self._writer.close()
