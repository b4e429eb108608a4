"""What may be tried: schedules on the engines of one bundle, each different from all others.

Two schedules that lower to the same program are one candidate, and the first text for it stands: P6 is
H1P5, P after anything but H or P is H, AB3x2 is AB2x2, and an interval of guidance that leaves no evaluation
out is none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.calibration.tune.grids import Warp, power, shift, warp
from flowturbo_trt.runtime.programs import find_program
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.program import Instruction, Program
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.steps import REFINER, REFINER_READINGS, STEPS

# What searches start from; moves go on from there.
TAILS = (0, 1, 2, 3, 5)
WARPS: tuple[Warp | None, ...] = (None, shift(0.75), shift(1.33), power(0.8), power(1.25))
INTERVALS = ((0.0, 0.75), (0.1, 0.9), (0.25, 1.0))
# A narrower one makes an image of another kind.
LEAST_GUIDED = 0.3

# Programs are the same where these are.
Meaning = tuple[Instruction, ...]


@dataclass(frozen=True)
class Candidate:
    """A schedule on the engines of a bundle, which goes by a name."""

    engines: str
    schedule: Schedule

    @property
    def key(self) -> tuple[str, str]:
        return (self.engines, str(self.schedule))

    @property
    def is_refined(self) -> bool:
        return REFINER in self.schedule.kinds


@dataclass(frozen=True)
class Space:
    """What may be tried on a bundle's engines with requests of a variant.

    `refines` and `unguides` say whether there are engines for R steps and for evaluations without
    guidance: schedules of the bundle's own may use them all. Candidates have at most `evaluations` of the
    predictor and `refined` steps R.
    """

    engines: str
    manifest: Manifest
    variant: str
    refines: bool
    unguides: bool
    evaluations: int
    refined: int

    @property
    def kinds(self) -> tuple[str, ...]:
        return (*STEPS, REFINER) if self.refines and self.refined else tuple(STEPS)

    @property
    def readings(self) -> tuple[str, ...]:
        return tuple(REFINER_READINGS)

    def program(self, schedule: Schedule) -> Program | None:
        """Lower a schedule; None where the bundle cannot run it, or it is larger than is asked for."""
        try:
            program = find_program(self.manifest, schedule, self.variant)
        except FlowTurboError:
            return None
        calls = program.evaluations()
        predictions = sum(count for (network, _), count in calls.items() if network == "predictor")
        refined = schedule.kinds.count(REFINER)
        if refined and not self.refines:
            return None
        return program if predictions <= self.evaluations and refined <= self.refined else None

    def start(self) -> Iterator[Schedule]:
        """Yield the usual schedules of every size, on the usual grids, and the bundle's tables."""
        plain = [
            Schedule(groups, reading=reading)
            for N in range(2, self.evaluations + 1)
            for body in _bodies(N)
            for groups, reading in self._tailed(body)
        ]
        tables = [Schedule.of_table(table) for table in self.manifest.tables]
        intervals = (None, *INTERVALS) if self.unguides else (None,)
        for schedule, guided in product((*tables, *plain), intervals):
            for by in WARPS if schedule.table is None else (None,):
                if (made := _variation(schedule, by, guided)) is not None:
                    yield made

    def _tailed(self, body: tuple[tuple[str, int], ...]) -> Iterator[tuple[tuple[tuple[str, int], ...], str]]:
        yield body, "reference"
        if self.refines:
            for tail, reading in product(TAILS, ("reference", "single")):
                if 0 < tail <= self.refined:
                    yield (*body, (REFINER, tail)), reading


def meaning(program: Program) -> Meaning:
    """Return what programs have in common that compute the same."""
    return program.instructions


def with_kinds(kinds: Sequence[str], times: tuple[float, ...], like: Schedule) -> Schedule:
    """Make a schedule of kinds in order; raises ScheduleError."""
    groups = tuple((kind, len(list(group))) for kind, group in groupby(kinds))
    reading = like.reading if REFINER in kinds else "reference"
    return Schedule(groups, times, reading, like.guided)


def _bodies(N: int) -> Iterator[tuple[tuple[str, int], ...]]:
    """Yield the usual ways to spend N evaluations of the predictor."""
    for kind in ("E", "AB2", "AB3", "AB4"):
        yield ((kind, N),)
    for heun in (1, 2, 3):
        if 2 * heun < N:
            yield (("H", heun), ("P", N - 2 * heun))
    if N % 2 == 0:
        yield (("H", N // 2),)


def _variation(schedule: Schedule, by: Warp | None, guided: tuple[float, float] | None) -> Schedule | None:
    if schedule.table is not None:
        return Schedule.of_table(schedule.table, guided)
    times: tuple[float, ...] | None = () if by is None else warp(schedule.grid, by)
    if times is None:
        return None
    return Schedule(schedule.groups, times, schedule.reading, guided)
