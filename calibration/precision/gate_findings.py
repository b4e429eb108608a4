"""What the gate finds, and the checks that are made of it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flowturbo_trt.evaluation.report import Check


@dataclass(frozen=True)
class Drift:
    """How far a schedule's latents (relative L2) and images (dB) move, over rows."""

    schedule: str
    budget: float
    mean: float
    interval: tuple[float, float]
    worst: float
    psnr_mean: float | None
    psnr_worst: float | None


@dataclass(frozen=True)
class Agreement:
    """What an extractor says of a schedule's images.

    Shares that are recognised as what they were made as, where it can tell; the Fréchet distance between
    the two sets of images.
    """

    schedule: str
    float32: float | None
    quantized: float | None
    drop_interval: tuple[float, float] | None
    frechet_distance: float


@dataclass(frozen=True)
class Speed:
    """A schedule's trajectory in milliseconds at a batch size, medians with 95 % intervals."""

    schedule: str
    batch: int
    float32: float
    quantized: float
    float32_interval: tuple[float, float]
    quantized_interval: tuple[float, float]

    @property
    def ratio(self) -> float:
        return self.float32 / self.quantized

    @property
    def ratio_interval(self) -> tuple[float, float]:
        """Where the ratio lies if both medians lie in their intervals."""
        low, high = self.float32_interval, self.quantized_interval
        return low[0] / high[1], low[1] / high[0] if high[0] > 0 else math.inf


@dataclass(frozen=True)
class Gate:
    """What was measured of a recipe; it passes if every check is met."""

    checks: tuple[Check, ...]
    velocity: tuple[Mapping[str, Any], ...]
    drifts: tuple[Drift, ...]
    agreements: tuple[Agreement, ...]
    speeds: tuple[Speed, ...]
    float32_bytes: int
    quantized_bytes: int
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return all(check.met for check in self.checks)

    def describe(self) -> dict[str, Any]:
        """Return this as plain data."""
        return {"passed": self.passed, **asdict(self)}


def within(drift: Drift) -> Check:
    return Check(
        f"{drift.schedule}, trajectory error",
        drift.mean,
        f"at most {drift.budget:.4g}",
        drift.mean <= drift.budget,
        drift.interval,
    )


def keeps_agreement(agreement: Agreement, limit: float) -> Check:
    assert agreement.float32 is not None
    assert agreement.quantized is not None
    drop = agreement.float32 - agreement.quantized
    return Check(
        f"{agreement.schedule}, class agreement lost",
        drop,
        f"at most {limit:g}",
        drop <= limit + 1e-9,
        agreement.drop_interval,
    )


def faster(speed: Speed) -> Check:
    low, _ = speed.ratio_interval
    return Check(
        f"{speed.schedule} at batch {speed.batch}, float32 ms / 8-bit ms",
        speed.ratio,
        "surely more than 1",
        low > 1,
        speed.ratio_interval,
    )
