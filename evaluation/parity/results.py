"""What verification found: figures, and whether they hold, as data."""

import math
from dataclasses import dataclass
from typing import Literal

from flowturbo_trt.bundle.manifest import Engine
from flowturbo_trt.evaluation.parity.recording import Recording
from flowturbo_trt.evaluation.parity.thresholds import Thresholds

Status = Literal["passed", "failed", "not run"]


@dataclass(frozen=True)
class CallError:
    """One half of a call's output against the reference's: the worst row of a batch."""

    schedule: str
    variant: str
    call: int
    t: float
    half: int
    batch: int
    row: int
    relative_l2: float
    cosine: float
    amplification: float

    def excess(self, limits: Thresholds) -> float:
        """Return how many times its limit the worse of both figures reaches; above 1 fails, NaN is ∞."""
        error = self.relative_l2 / (self.amplification * limits.call_relative_l2)
        # A deviation of e turns a vector by up to e, which takes e²/2 from the cosine.
        turned = (1 - self.cosine) / (self.amplification**2 * (1 - limits.call_cosine))
        return math.inf if math.isnan(self.relative_l2 + self.cosine) else max(error, turned)


@dataclass(frozen=True)
class ImageError:
    """Images (levels 0 … 255) against the reference's: the worst row of a batch."""

    schedule: str
    variant: str
    batch: int
    row: int
    psnr: float
    max_level_difference: int


@dataclass(frozen=True)
class EngineParity:
    """One engine on recorded inputs: `calls` of a velocity network, or `images` of a decoder."""

    engine: Engine
    limits: Thresholds
    calls: tuple[CallError, ...] = ()
    images: tuple[ImageError, ...] = ()
    # What is wrong in the engine's file, whatever the figures are.
    file_fault: str | None = None
    # Why there are no (further) figures.
    failure: str | None = None
    not_run: str | None = None

    @property
    def status(self) -> Status:
        if self.failure is not None or self.file_fault is not None:
            return "failed"
        if self.not_run is not None:
            return "not run"
        call, image = self.worst_call, self.worst_image
        holds = (call is None or call.excess(self.limits) <= 1) and (
            image is None or image.psnr >= self.limits.decoder_psnr
        )
        return "passed" if holds else "failed"

    @property
    def worst_call(self) -> CallError | None:
        return max(self.calls, key=self._excess, default=None)

    @property
    def worst_image(self) -> ImageError | None:
        return min(self.images, key=by_psnr, default=None)

    def _excess(self, call: CallError) -> float:
        return call.excess(self.limits)


@dataclass(frozen=True)
class TrajectoryParity:
    """A backend's own trajectory and image against the reference's: the worst row of each.

    `per_step` is the relative L2 of that row's state after every step, `relative_l2` of its latents.
    Without an engine to run on there is no precision, and there are no limits.
    """

    schedule: str
    variant: str
    backend: str
    precision: str
    batch: int
    limits: Thresholds | None
    row: int = 0
    amplification: float = 1.0
    relative_l2: float = math.nan
    per_step: tuple[float, ...] = ()
    image: ImageError | None = None
    failure: str | None = None
    not_run: str | None = None

    @property
    def status(self) -> Status:
        if self.failure is not None:
            return "failed"
        if self.not_run is not None or self.limits is None:
            return "not run"
        holds = self.relative_l2 <= self.allowed and (
            self.image is None or self.image.psnr >= self.limits.image_psnr
        )
        return "passed" if holds else "failed"

    @property
    def left_at(self) -> int | None:
        """The first step, from 0, whose state is outside the limit."""
        outside = (i for i, error in enumerate(self.per_step) if not error <= self.allowed)
        return next(outside, None)

    @property
    def allowed(self) -> float:
        """The limit of `relative_l2` in this row."""
        return math.inf if self.limits is None else self.amplification * self.limits.trajectory_relative_l2


@dataclass(frozen=True)
class ParityReport:
    """Everything verification found; `torch` is about the graphs, `notes` say what was left out."""

    engines: tuple[EngineParity, ...]
    trajectories: tuple[TrajectoryParity, ...]
    torch: tuple[EngineParity, ...]
    notes: tuple[str, ...]
    recordings: tuple[Recording, ...]

    @property
    def checks(self) -> tuple[EngineParity | TrajectoryParity, ...]:
        return (*self.torch, *self.engines, *self.trajectories)

    def count(self, status: Status) -> int:
        return sum(check.status == status for check in self.checks)


def by_psnr(image: ImageError) -> float:
    return image.psnr
