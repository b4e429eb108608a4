"""Schedules: what the user writes, e.g. `H1P5R3`."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.steps import REFINER, REFINER_READINGS, STEPS, Passed, Step, step_function
from flowturbo_trt.sampling.table import SolverTable

_COUNT = r"(?:0|[1-9]\d*)"
# A step of one letter and its count, or a longer name, x and its count.
_LONG, _SHORT = rf"([A-Z]{{2,}}\d*)x({_COUNT})", rf"([A-Z])({_COUNT})"
_GROUP = re.compile(f"{_LONG}|{_SHORT}")
_SCHEDULE = re.compile(
    rf"(?:table:(?P<table>[^:@\s]+)|(?P<groups>(?:{_LONG}|{_SHORT})+)(?::(?P<reading>[a-z]+))?)"
    r"(?::guided=(?P<low>[^:@\s]+?)\.\.(?P<high>[^:@\s]+))?(?:@(?P<times>.+))?"
)
_GRAMMAR = (
    f"groups of a step ({', '.join((*STEPS, REFINER))}) and a count, after x where the step has a long name, "
    "e.g. H1P5R3, H8, AB2x8, or table:NAME; optionally :READING of R, :guided=LOW..HIGH and @t0,t1,…,tN"
)
# A step of a table, which says what it is.
TABLED = "T"
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
    (Kynkäänniemi et al., 2024): outside it is evaluated unguided, for half the work. With a `table`
    (see `of_table`) kinds and times are the table's.
    """

    groups: tuple[tuple[str, int], ...]
    times: tuple[float, ...] = ()
    reading: str = "reference"
    guided: tuple[float, float] | None = None
    table: SolverTable | None = None

    def __post_init__(self) -> None:
        if self.reading not in REFINER_READINGS:
            raise ScheduleError(
                f"{self}: unknown refiner reading {self.reading!r}; known are {', '.join(REFINER_READINGS)}"
            )
        if self.table is not None and (self.groups, self.times) != _of_table(self.table):
            raise ScheduleError(f"{self}: has steps or times that are not its table's")
        own = set() if self.table is None else {TABLED}
        if unknown := {kind for kind, _ in self.groups} - {REFINER, *STEPS, *own}:
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
    def of_table(cls, table: SolverTable, guided: tuple[float, float] | None = None) -> "Schedule":
        """Return the schedule of a table's steps."""
        groups, times = _of_table(table)
        return cls(groups, times, guided=guided, table=table)

    @classmethod
    def parse(cls, text: str, tables: Iterable[SolverTable] = ()) -> "Schedule":
        """Read `GROUPS[:READING][:guided=LOW..HIGH][@TIMES]`; `str` gives the text back.

        Or `table:NAME[:guided=LOW..HIGH]` with one of `tables`, which a bundle has.
        """
        match = _SCHEDULE.fullmatch(text)
        if match is None:
            raise ScheduleError(f"{text!r} is no schedule; expected {_GRAMMAR}")
        try:
            groups = tuple((a or b, int(m or n)) for a, m, b, n in _GROUP.findall(match["groups"] or ""))
            times = tuple(float(time) for time in match["times"].split(",")) if match["times"] else ()
            guided = (float(match["low"]), float(match["high"])) if match["low"] else None
        except ValueError as error:
            raise ScheduleError(f"{text[:80]!r}: a count or time is not a number ({error})") from error
        if match["table"]:
            if times:
                raise ScheduleError(
                    f"{text[:80]}: a table has its own times; leave out @{match['times'][:40]}"
                )
            return cls.of_table(_named(match["table"], tables), guided)
        return cls(groups, times, match["reading"] or "reference", guided)

    def __str__(self) -> str:
        guided = "" if self.guided is None else ":guided=" + "..".join(map(_exact, self.guided))
        if self.table is not None:
            return f"table:{self.table.name}{guided}"
        groups = "".join(f"{kind}{'x' if len(kind) > 1 else ''}{count}" for kind, count in self.groups)
        reading = "" if self.reading == "reference" else f":{self.reading}"
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

    @property
    def formulas(self) -> tuple[tuple[Step, float, float], ...]:
        """The steps as (formula, t, s)."""
        if self.table is not None:
            functions = self.table.formulas
        else:
            functions = tuple(step_function(kind, self.reading) for kind in self.kinds)
        return tuple((f, t, s) for f, (_, t, s) in zip(functions, self.steps, strict=True))

    def is_guided_at(self, t: float) -> bool:
        """Whether a request with guidance is guided at a time."""
        return self.guided is None or self.guided[0] <= t <= self.guided[1]

    def evaluations(self) -> Counter[str]:
        """Count the evaluations of each network, by running the formulas on numbers."""
        field = _CountingField()
        x = 0.0
        passed: Passed = ()
        for step, t, s in self.formulas:
            x, passed = step(field, x, passed, t, s)
        return field.counts


def named_table(text: str) -> str | None:
    """Return the name of the table that a schedule's text asks for, if any."""
    match = _SCHEDULE.fullmatch(text)
    return match["table"] if match else None


def _of_table(table: SolverTable) -> tuple[tuple[tuple[str, int], ...], tuple[float, ...]]:
    """Return groups and times of a table."""
    counts = {TABLED: len(table.weights) - table.refined, REFINER: table.refined}
    return tuple((kind, count) for kind, count in counts.items() if count), table.times


def _named(name: str, tables: Iterable[SolverTable]) -> SolverTable:
    known = {table.name: table for table in tables}
    if name not in known:
        raise ScheduleError(
            f"table:{name}: there is no such table here (there are: {', '.join(known) or 'none'}); only "
            "bundles have tables, from `calibrate solver`"
        )
    return known[name]


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
