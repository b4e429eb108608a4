"""What the digits' training loops share: where files go, the learning rate over time, a progress line."""

import math
import sys
import time
from pathlib import Path

import torch

WEIGHTS = Path(__file__).parent / "weights"
THREADS = 2


def prepare(seed: int) -> torch.Generator:
    """Fix the threads and the seed of a stage, and return its own generator for data and noise."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """Return the factor on the learning rate: linear up to 1 over `warmup` steps, then cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


class Progress:
    """Print a line with the running mean of the loss and the time per step, to stderr."""

    def __init__(self, stage: str, steps: int, every: int = 100) -> None:
        self.stage = stage
        self.steps = steps
        self.every = every
        self.losses: list[float] = []
        self.since = time.perf_counter()

    def update(self, step: int, loss: float) -> None:
        """Record the loss of step `step`, counted from 0."""
        self.losses.append(loss)
        if (step + 1) % self.every and step + 1 != self.steps:
            return
        mean = sum(self.losses) / len(self.losses)
        seconds = (time.perf_counter() - self.since) / len(self.losses)
        line = f"{self.stage} {step + 1}/{self.steps} loss {mean:.4f} {seconds * 1000:.0f} ms/step"
        print(line, file=sys.stderr, flush=True)
        self.losses.clear()
        self.since = time.perf_counter()
