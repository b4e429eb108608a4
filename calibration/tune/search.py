"""The search: successive halving within bands of latency, and local moves around what is left.

A round is a bracket (Jamieson and Talwalkar, 2016): all of its candidates are tried on a few noises, the
better half of every band on twice as many, and so on. Halving all of them at once would leave the slow ones
only, which are always more exact. The first round's candidates are the usual schedules; those of later rounds
are the best so far and their neighbours, nearer ones each time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TypeVar

import numpy as np

from flowturbo_trt.calibration.endpoints import CalibrationError, Progress
from flowturbo_trt.calibration.tune.candidates import Candidate, Meaning, Space, meaning
from flowturbo_trt.calibration.tune.front import ranked
from flowturbo_trt.calibration.tune.latency import LatencyModel
from flowturbo_trt.calibration.tune.moves import neighbours
from flowturbo_trt.calibration.tune.options import TuneOptions
from flowturbo_trt.calibration.tune.trials import Trials

# Of the distance that moves go, in each round of that of the one before.
SHORTER = 0.8
# How often a neighbour is asked for that has not been tried before.
PATIENCE = 30

T = TypeVar("T")


@dataclass(frozen=True)
class Tried:
    """A candidate, the milliseconds it is expected to take, its mean error, and on how many noises."""

    candidate: Candidate
    ms: float
    error: float
    rows: int

    @property
    def values(self) -> tuple[float, float]:
        return (self.ms, self.error)


class Search:
    """Searches spaces, by name, with latency models of the same names.

    A pure function of its arguments and of the errors in `trials`. `largest` is the largest batch: noises are
    tried in multiples of it.
    """

    def __init__(
        self,
        spaces: Mapping[str, Space],
        models: Mapping[str, LatencyModel],
        trials: Trials,
        options: TuneOptions,
        largest: int,
        progress: Progress,
    ) -> None:
        self._spaces = spaces
        self._models = models
        self._trials = trials
        self._options = options
        self._progress = progress
        self._rungs = rungs(options.trajectories, largest)
        self._known: set[tuple[str, Meaning]] = set()
        self._ms: dict[Candidate, float] = {}
        self._edges: tuple[float, float] = (0.0, math.inf)
        self.tried: dict[Candidate, Tried] = {}

    def run(self, own: Sequence[Candidate]) -> list[Tried]:
        """Search from `own` candidates and the usual ones; return the best of every band."""
        best = self._bracket(self._start(own), "the first")
        for number in range(1, self._options.rounds + 1):
            parents = [tried.candidate for tried in best]
            pool = [*parents, *self._children(parents, number)]
            best = self._bracket(pool, f"{number} of {self._options.rounds}")
        return self._best([t for t in self.tried.values() if t.rows == self._rungs[-1]], self._least)

    def _start(self, own: Sequence[Candidate]) -> list[Candidate]:
        """Return own candidates, the tables, and of the usual schedules as many of each band."""
        given = [candidate for candidate in own if self._admit(candidate)]
        usual = [
            candidate
            for name, space in self._spaces.items()
            for schedule in space.start()
            if self._admit(candidate := Candidate(name, schedule))
        ]
        milliseconds = [self._ms[candidate] for candidate in (*given, *usual)]
        self._edges = (min(milliseconds), max(milliseconds))
        given += [c for c in usual if c.schedule.table is not None]
        random = np.random.default_rng([self._options.seed, 0])
        shuffled = [usual[i] for i in random.permutation(len(usual))]
        bands = list(self._in_bands(shuffled, lambda candidate: self._ms[candidate]).values())
        room = max(0, self._options.start - len(given))
        in_turn = [band[i] for i in range(max(map(len, bands))) for band in bands if i < len(band)]
        return list(dict.fromkeys([*given, *in_turn[:room]]))

    def _children(self, parents: Sequence[Candidate], number: int) -> list[Candidate]:
        """Return neighbours of all parents in turn that have not been tried."""
        random = np.random.default_rng([self._options.seed, number])
        reach = SHORTER ** (number - 1)
        children: list[Candidate] = []
        for tries, parent in enumerate(cycle(parents)):
            if len(children) == self._options.children or tries == PATIENCE * self._options.children:
                break
            child = self._child(parent, random, reach)
            if child is not None and self._admit(child):
                children.append(child)
        return children

    def _child(self, parent: Candidate, random: np.random.Generator, reach: float) -> Candidate | None:
        others = [name for name in self._spaces if name != parent.engines]
        if others and parent.schedule.table is None and random.random() < 1 / 4:
            return Candidate(str(random.choice(others)), parent.schedule)
        found = next(neighbours(parent.schedule, self._spaces[parent.engines], random, reach), None)
        return None if found is None else Candidate(parent.engines, found)

    def _admit(self, candidate: Candidate) -> bool:
        """Say whether a candidate can run and is new, and work out what it takes."""
        program = self._spaces[candidate.engines].program(candidate.schedule)
        if program is None or (key := (candidate.engines, meaning(program))) in self._known:
            return False
        self._known.add(key)
        self._ms[candidate] = self._models[candidate.engines].ms(program)
        return True

    def _bracket(self, pool: Sequence[Candidate], name: str) -> list[Tried]:
        """Try candidates on more and more noises, and return the best of every band."""
        for rows in self._rungs:
            tried = []
            for done, candidate in enumerate(pool):
                what = f"round {name}: {len(pool)} candidates on {rows} noises"
                self._progress(what, done, len(pool))
                tried.append(self._try(candidate, rows))
            self._progress(what, len(pool), len(pool))
            best = self._best(tried, self._least if rows == self._rungs[-1] else self._half)
            pool = [t.candidate for t in best]
        if not best:
            raise CalibrationError(
                "no candidate ends where numbers are finite; look at the bundle with verify"
            )
        return best

    def _try(self, candidate: Candidate, rows: int) -> Tried:
        error = float(self._trials.errors(candidate, rows).mean())
        found = Tried(candidate, self._ms[candidate], error, rows)
        if candidate not in self.tried or self.tried[candidate].rows < rows:
            self.tried[candidate] = found
        return found

    def _best(self, tried: Sequence[Tried], count: Callable[[int], int]) -> list[Tried]:
        """Return of every band the best: its front, the front of what is left, and so on."""
        bands = self._in_bands([t for t in tried if math.isfinite(t.error)], lambda t: t.ms)
        return [t for band in bands.values() for t in list(ranked(band, _values))[: count(len(band))]]

    def _least(self, count: int) -> int:
        return self._options.kept

    def _half(self, count: int) -> int:
        return max(self._options.kept, math.ceil(count / 2))

    def _in_bands(self, items: Sequence[T], ms: Callable[[T], float]) -> dict[int, list[T]]:
        """Sort items into bands of equal ratios of latency, the fastest band first."""
        bands: dict[int, list[T]] = {}
        for item in items:
            bands.setdefault(band_of(ms(item), self._edges, self._options.bands), []).append(item)
        return dict(sorted(bands.items()))


def rungs(rows: int, largest: int) -> tuple[int, ...]:
    """Return the numbers of noises of a bracket: a quarter, half and all, rounded up to whole batches."""
    return tuple(sorted({min(rows, -(-rows // (part * largest)) * largest) for part in (4, 2)} | {rows}))


def band_of(ms: float, edges: tuple[float, float], bands: int) -> int:
    """Return the band of a latency: ratios between its edges in equal parts, what is beyond in the outer."""
    low, high = edges
    if high <= low:
        return 0
    return min(bands - 1, max(0, int(bands * math.log(ms / low) / math.log(high / low))))


def _values(tried: Tried) -> tuple[float, float]:
    return tried.values
