"""What a search is asked for; the command line reads its defaults here."""

from dataclasses import dataclass, field
from pathlib import Path

from flowturbo_trt.calibration.tune.errors import TuneError
from flowturbo_trt.evaluation.speed.latency import Stability

LEAST = {
    **dict.fromkeys(("seed", "refined", "rounds"), 0),
    **dict.fromkeys(("trajectories", "start", "children", "bands", "kept", "batch"), 1),
    **dict.fromkeys(("held_out", "evaluations"), 2),
}


@dataclass(frozen=True)
class FidOptions:
    """The extractor and the images that FID is against, and how many images of each schedule are judged."""

    extractor: Path
    reference: Path
    num: int = 2000

    def __post_init__(self) -> None:
        if self.num < 2:
            raise TuneError(f"fid num is {self.num}, expected at least 2: one image has no covariance")


@dataclass(frozen=True)
class TuneOptions:
    """A search on the engines of `bundle`, and of `also`: the same model at other precisions or backends.

    These run on `backend`, `device` and `provider` too where they can. `trajectories` noises are searched
    on, `held_out` further ones judge what was found; `reference` is the schedule whose ends are the true
    ones. Candidates have at most `evaluations` of the predictor (None: 12, or two more than the schedule that
    the bundle was built with) and `refined` steps R. `start` candidates begin, and
    `rounds` times `children` of the best follow, in `bands` of latency of which each keeps `kept`. Times are
    those of `batch` rows (None: the largest that was built).
    """

    bundle: Path
    also: tuple[Path, ...] = ()
    backend: str | None = None
    device: str | None = None
    provider: str | None = None
    threads: int = 0
    guidance: tuple[float, ...] = ()
    trajectories: int = 64
    held_out: int = 128
    reference: str = "H50"
    evaluations: int | None = None
    refined: int = 6
    start: int = 160
    rounds: int = 8
    children: int = 64
    bands: int = 8
    kept: int = 3
    batch: int | None = None
    seed: int = 0
    stability: Stability = field(default_factory=Stability)
    fid: FidOptions | None = None

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise TuneError(f"{name} is {value}, expected at least {least}")
