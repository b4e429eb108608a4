"""What the gate finds, and the checks that are made of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flowturbo_trt.calibration.precision.plain_data import plain
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.runtime.backend_onnxruntime import NAME


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

    Of so many `images` with each precision, the shares that are recognised as what they were made as, where
    it can tell; the Fréchet distance between the two sets.
    """

    schedule: str
    images: int
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
        return low[0] / high[1], low[1] / high[0]


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

    @property
    def timed(self) -> tuple[str, ...]:
        """The backends on which everything that was timed is faster; the verdict is also on errors."""
        return (NAME,) if self.speeds and all(faster(speed).met for speed in self.speeds) else ()

    def describe(self) -> dict[str, Any]:
        """Return this as plain data."""
        described: dict[str, Any] = plain({"passed": self.passed, "timed": list(self.timed), **asdict(self)})
        return described


def within(drift: Drift) -> Check:
    return Check(
        f"{drift.schedule}, trajectory error",
        drift.mean,
        f"at most {drift.budget:.4g}",
        drift.mean <= drift.budget,
        drift.interval,
    )


def keeps_agreement(agreement: Agreement, limit: float) -> Check:
    """Check that recognition falls by no more than a limit, as surely as the images can tell."""
    assert agreement.float32 is not None
    assert agreement.quantized is not None
    assert agreement.drop_interval is not None
    drop = agreement.float32 - agreement.quantized
    # Were it at the limit, that many images would show no loss at all once in 20 times (rule of three).
    enough = agreement.images * limit >= 3
    met = enough and agreement.drop_interval[1] <= limit + 1e-9
    told = f"surely at most {limit:g}"
    if not met and drop <= limit + 1e-9:
        told += f"; cannot be told with {agreement.images} images, raise --judged-rows"
    return Check(f"{agreement.schedule}, class agreement lost", drop, told, met, agreement.drop_interval)


def faster(speed: Speed) -> Check:
    """Check that 8 bits are faster, as surely as the times can tell."""
    low, _ = speed.ratio_interval
    told = "surely more than 1"
    if low <= 1 < speed.ratio:
        told += "; cannot be told with times as unsteady, raise --max-seconds on a machine that is idle"
    name = f"{speed.schedule} at batch {speed.batch}, float32 ms / 8-bit ms"
    return Check(name, speed.ratio, told, low > 1, speed.ratio_interval)
