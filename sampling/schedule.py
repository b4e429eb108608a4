"""Schedules: what the user writes, e.g. `H1P5R3`."""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.steps import REFINER, REFINER_READINGS, STEPS, Passed, step_function

_COUNT = r"(?:0|[1-9]\d*)"
# A step of one letter and its count, or a longer name, x and its count.
_LONG, _SHORT = rf"([A-Z]{{2,}}\d*)x({_COUNT})", rf"([A-Z])({_COUNT})"
_GROUP = re.compile(f"{_LONG}|{_SHORT}")
_SCHEDULE = re.compile(
    rf"(?P<groups>(?:{_LONG}|{_SHORT})+)(?::(?P<reading>[a-z]+))?"
    r"(?::guided=(?P<low>[^:@\s]+?)\.\.(?P<high>[^:@\s]+))?(?:@(?P<times>.+))?"
)
_GRAMMAR = (
    f"groups of a step ({', '.join((*STEPS, REFINER))}) and a count, after x where the step has a long name, "
    "e.g. H1P5R3, H8, AB2x8; optionally :READING of R, :guided=LOW..HIGH and @t0,t1,…,tN"
)
# A program lists every step; past this a schedule is a slip of the finger.
MAX_STEPS = 10_000


class ScheduleError(FlowTurboError):
    """A schedule cannot be read or cannot be run."""


@dataclass(frozen=True)
class Schedule:
    """A list of steps over a time grid.

    `groups` are (kind, count) as written; `times` is the grid of steps + 1 increasing times in [0,1],
    or empty for the uniform grid from 0 to 1; `reading` says how R steps are computed
    (steps.REFINER_READINGS). `guided` are the first and the last time at which the predictor is guided
    (Kynkäänniemi et al., 2024): outside it is evaluated unguided, for half the work.
    """

    groups: tuple[tuple[str, int], ...]
    times: tuple[float, ...] = ()
    reading: str = "reference"
    guided: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.reading not in REFINER_READINGS:
            raise ScheduleError(
                f"{self}: unknown refiner reading {self.reading!r}; known are {', '.join(REFINER_READINGS)}"
            )
        if unknown := {kind for kind, _ in self.groups} - {REFINER, *STEPS}:
            raise ScheduleError(f"{self}: unknown step {min(unknown)!r}; known are {', '.join(STEPS)}, R")
        if sum(count for _, count in self.groups) > MAX_STEPS:
            raise ScheduleError(f"{self}: has more than {MAX_STEPS} steps")
        if not self.kinds:
            raise ScheduleError(f"{self}: has no steps; write at least one, e.g. H1")
        if self.kinds[0] == REFINER:
            raise ScheduleError(f"{self}: starts with R, which refines an earlier velocity; put H or P first")
        if self.times and len(self.times) != len(self.kinds) + 1:
            raise ScheduleError(
                f"{self}: has {len(self.kinds)} steps and {len(self.times)} times; expected "
                f"{len(self.kinds) + 1} times"
            )
        grid = self.grid
        if not (grid[0] >= 0 and grid[-1] <= 1 and all(t < s for t, s in pairwise(grid))):
            raise ScheduleError(f"{self}: times must increase within 0 to 1")
        if self.guided is not None and not 0 <= self.guided[0] <= self.guided[1] <= 1:
            raise ScheduleError(
                f"{self}: guided from {self.guided[0]} to {self.guided[1]}; expected 0 ≤ LOW ≤ HIGH ≤ 1"
            )

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Read `GROUPS[:READING][:guided=LOW..HIGH][@TIMES]`; `str` gives the text back."""
        match = _SCHEDULE.fullmatch(text)
        if match is None:
            raise ScheduleError(f"{text!r} is no schedule; expected {_GRAMMAR}")
        try:
            groups = tuple((a or b, int(m or n)) for a, m, b, n in _GROUP.findall(match["groups"]))
            times = tuple(float(time) for time in match["times"].split(",")) if match["times"] else ()
            guided = (float(match["low"]), float(match["high"])) if match["low"] else None
        except ValueError as error:
            raise ScheduleError(f"{text[:80]!r}: a count or time is not a number ({error})") from error
        return cls(groups, times, match["reading"] or "reference", guided)

    def __str__(self) -> str:
        groups = "".join(f"{kind}{'x' if len(kind) > 1 else ''}{count}" for kind, count in self.groups)
        reading = "" if self.reading == "reference" else f":{self.reading}"
        guided = "" if self.guided is None else ":guided=" + "..".join(map(_exact, self.guided))
        times = "@" + ",".join(map(_exact, self.times)) if self.times else ""
        return groups + reading + guided + times

    @property
    def kinds(self) -> tuple[str, ...]:
        """The step kinds in order, one per step."""
        return tuple(kind for kind, count in self.groups for _ in range(count))

    @property
    def grid(self) -> tuple[float, ...]:
        """The times between which the steps run, one more than steps."""
        n = len(self.kinds)
        return self.times or tuple(i / n for i in range(n + 1))

    @property
    def steps(self) -> tuple[tuple[str, float, float], ...]:
        """The steps as (kind, t, s)."""
        return tuple((kind, t, s) for kind, (t, s) in zip(self.kinds, pairwise(self.grid), strict=True))

    def is_guided_at(self, t: float) -> bool:
        """Whether a request with guidance is guided at a time."""
        return self.guided is None or self.guided[0] <= t <= self.guided[1]

    def evaluations(self) -> Counter[str]:
        """Count the evaluations of each network, by running the formulas on numbers."""
        field = _CountingField()
        x = 0.0
        passed: Passed = ()
        for kind, t, s in self.steps:
            x, passed = step_function(kind, self.reading)(field, x, passed, t, s)
        return field.counts


def _exact(time: float) -> str:
    return f"{time:.17g}" if time != round(time, 12) else f"{time:.12g}"


class _CountingField:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def predict(self, x: Any, t: float) -> float:
        self.counts["predictor"] += 1
        return 0.0

    def refine(self, x: Any, v: Any, t: float) -> float:
        self.counts["refiner"] += 1
        return 0.0
