"""What a comparison is asked for."""

from dataclasses import dataclass
from pathlib import Path

from flowturbo_trt.evaluation.comparison.errors import ComparisonError
from flowturbo_trt.evaluation.speed.latency import Stability

TIMING = Stability(seconds=120.0)


@dataclass(frozen=True)
class ComparisonOptions:
    """Which schedules, on which bundle, judged against what; None is what the bundle has by default.

    Every schedule generates `num` images from the noises that `generate --num … --seed …` starts from;
    `truth_num` of them are followed along `truth_schedule` too. `metrics` are names of
    quality.judge.METRICS, () all that can be had; `latency_batch` is by default the largest built.
    """

    bundle: Path
    reference: Path
    extractor: Path
    schedules: tuple[str, ...]
    num: int = 2000
    guidance: float | None = None
    seed: int = 0
    baseline: str = "H8"
    metrics: tuple[str, ...] = ()
    backend: str | None = None
    device: str | None = None
    provider: str | None = None
    threads: int = 0
    latency_batch: int | None = None
    truth_schedule: str = "H100"
    truth_num: int = 200
    stability: Stability = TIMING

    def __post_init__(self) -> None:
        if not all(self.schedules) or not self.schedules:
            raise ComparisonError("no schedule is named; give one or more, e.g. H8,H1P5R3,AB2x8")
        if self.truth_num < 1:
            raise ComparisonError(
                f"{self.truth_num} images to follow along {self.truth_schedule}, expected at least 1"
            )
