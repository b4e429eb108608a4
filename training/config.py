"""What a training run is told: hyper-parameters, their limits, and the paper's sets of them."""

import math
from dataclasses import dataclass, fields
from typing import Any

from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.schedule import Schedule

# Changing these between runs continues the same training; changing any other would not. Other parts of a
# batch give the same gradient to rounding.
RESUMABLE = {"steps", "checkpoint_every", "keep", "accumulate"}
INITIAL_WEIGHTS = ("random", "predictor", "refiner")
PRECISIONS = ("fp32", "bf16")


class TrainingError(FlowTurboError):
    """Training cannot start, resume or go on."""


@dataclass(frozen=True)
class TrainingConfig:
    """Hyper-parameters; the defaults are the paper's for class-conditional models.

    `batch` is of all processes together, each of which takes its share in `accumulate` parts. The
    learning rate rises for `warmup` steps and stays; `clip` bounds the gradient's norm (0: no bound).
    Guidance scales of the first velocity are uniform in [guidance_low, guidance_high]; 1 to 1 is the
    paper's unguided one. `on_policy` are schedules, parted by spaces, on whose own trajectories the
    refiner learns in turn instead of on points of the data's paths; `max_delta` and `label_drop` are
    of no effect then. `width` and `heads` of 0 are the predictor's width and size of a head. `init` is
    random, predictor (its embeddings and first blocks) or refiner (one that is given, with its shape).
    """

    steps: int = 30_000
    batch: int = 18
    accumulate: int = 1
    learning_rate: float = 5e-5
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float = 0.0
    ema: float = 0.9999
    max_delta: float = 0.12
    label_drop: float = 0.1
    on_policy: str = ""
    guidance_low: float = 1.0
    guidance_high: float = 1.0
    depth: int = 1
    width: int = 0
    heads: int = 0
    init: str = "random"
    precision: str = "fp32"
    checkpoint_every: int = 500
    keep: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "depth", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("seed", "warmup", "width", "heads"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} is {getattr(self, name)}, expected at least 0")
        if not 0 < self.max_delta <= 1 or not 0 <= self.ema < 1 or not 0 <= self.label_drop <= 1:
            raise TrainingError("expected 0 < max_delta ≤ 1, 0 ≤ ema < 1 and 0 ≤ label_drop ≤ 1")
        if not self.learning_rate > 0 or not self.weight_decay >= 0 or not self.clip >= 0:
            raise TrainingError("expected learning_rate > 0, weight_decay ≥ 0 and clip ≥ 0")
        if not -math.inf < self.guidance_low <= self.guidance_high < math.inf:
            raise TrainingError(
                f"guidance goes from {self.guidance_low} to {self.guidance_high}, expected "
                "guidance_low ≤ guidance_high"
            )
        if self.on_policy and not self.schedules:
            raise TrainingError("on_policy is blank, expected schedules, e.g. H1P5R3")
        for schedule in self.schedules:
            if not Schedule.parse(schedule).evaluations()["refiner"]:
                raise TrainingError(f"on_policy has {schedule}, which calls no refiner; add R, e.g. H1P5R3")
        if self.init not in INITIAL_WEIGHTS:
            raise TrainingError(f"init is {self.init!r}, expected {', '.join(INITIAL_WEIGHTS)}")
        if self.precision not in PRECISIONS:
            raise TrainingError(f"precision is {self.precision!r}, expected fp32 or bf16 (autocast)")

    @property
    def guided(self) -> bool:
        """Whether the first velocity is guided."""
        return (self.guidance_low, self.guidance_high) != (1, 1)

    @property
    def schedules(self) -> tuple[str, ...]:
        """The schedules learnt on policy."""
        return tuple(self.on_policy.split())

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: a function of the step, so no state."""
        return self.learning_rate * (min(1, (step + 1) / self.warmup) if self.warmup else 1)


DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(TrainingConfig)}
# What differs from TrainingConfig's defaults (FlowTurbo, arXiv:2409.18128, §4 and its appendix).
PRESETS: dict[str, dict[str, Any]] = {
    "class-conditional": {},
    "text-to-image": {"steps": 10_000, "batch": 16, "learning_rate": 2e-5, "warmup": 100, "clip": 0.01},
}
