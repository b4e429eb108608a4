"""The search, on errors that are known: halving, bands, moves, and what they find."""

import math
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.tune.candidates import Candidate, Space, meaning
from flowturbo_trt.calibration.tune.front import ranked
from flowturbo_trt.calibration.tune.latency import LatencyModel
from flowturbo_trt.calibration.tune.moves import neighbours
from flowturbo_trt.calibration.tune.options import TuneOptions
from flowturbo_trt.calibration.tune.search import Search, Tried, band_of, rungs
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.table import SolverTable
from flowturbo_trt.tests.calibration.tune import steady

MODEL = LatencyModel(
    1,
    steady.OVERHEAD,
    {
        "predictor guided": 0.01,
        "predictor unguided": 0.005,
        "refiner guided": 0.002,
        "refiner unguided": 0.001,
    },
)
OPTIONS = TuneOptions(Path("unused"), trajectories=16, start=40, rounds=3, children=20, bands=4, kept=2)
# Where the first and the last inner time are best.
BEST_TIMES = (0.27, 0.91)


def distance(schedule: Schedule) -> float:
    return abs(schedule.grid[1] - BEST_TIMES[0]) + abs(schedule.grid[-2] - BEST_TIMES[1])


class Known:
    """Errors in closed form, instead of trajectories: 1/evaluations², and how far times are off."""

    def __init__(self, worst: str | None = None, noise: float = 0.0) -> None:
        self.rows: dict[Candidate, list[int]] = defaultdict(list)
        self._worst = worst
        self._noise = noise

    def errors(self, candidate: Candidate, rows: int) -> Any:
        self.rows[candidate].append(rows)
        if candidate.engines == self._worst:
            return np.full(rows, np.inf)
        return np.full(rows, self.error(candidate, rows))

    def error(self, candidate: Candidate, rows: int) -> float:
        """An error, which is another one on more rows where there is noise."""
        count = candidate.schedule.evaluations()["predictor"]
        draw = np.random.default_rng([rows, *str(candidate.schedule).encode()]).random()
        return float(1 / count**2 + distance(candidate.schedule) + self._noise * draw)


def search(
    spaces: dict[str, Space], known: Known, own: tuple[Candidate, ...] = (), **options: Any
) -> tuple[list[Tried], Search]:
    models = dict.fromkeys(spaces, MODEL)
    trials: Any = known
    found = Search(spaces, models, trials, replace(OPTIONS, **options), 2, lambda what, done, total: None)
    return found.run(own), found


def test_a_seed_decides(tiny_space: Space) -> None:
    first, second = (search({"tiny": tiny_space}, Known())[0] for _ in range(2))
    assert first == second
    assert search({"tiny": tiny_space}, Known(), seed=1)[0] != first


def test_moves_find_what_no_start_has(tiny_space: Space) -> None:
    def off(found: list[Tried]) -> float:
        return min(distance(t.candidate.schedule) for t in found)

    alone = off(search({"tiny": tiny_space}, Known(), rounds=0, start=1000)[0])
    assert alone > 0.01
    assert off(search({"tiny": tiny_space}, Known(), rounds=10)[0]) < alone / 10


def test_bad_candidates_cost_little(tiny_space: Space) -> None:
    known = Known()
    _, found = search({"tiny": tiny_space}, known, rounds=0)
    assert {rows[0] for rows in known.rows.values()} == {4}
    tried = Counter(max(rows) for rows in known.rows.values())
    assert tried[4] >= 15
    assert tried[16] <= 20
    assert all(len(rows) == len(set(rows)) for rows in known.rows.values())
    assert {t.rows for t in found.tried.values()} == {4, 8, 16}


@pytest.mark.parametrize("rows", [4, 8])
def test_those_that_go_on_rank_before_those_that_do_not(tiny_space: Space, rows: int) -> None:
    known = Known(noise=0.5)
    # All there are: of these are the edges of the bands.
    search({"tiny": tiny_space}, known, rounds=0, start=1000)
    ms = {c: MODEL.ms(program) for c in known.rows if (program := tiny_space.program(c.schedule))}
    edges = (min(ms.values()), max(ms.values()))
    bands = defaultdict(list)
    for candidate, tried in known.rows.items():
        if rows in tried:
            bands[band_of(ms[candidate], edges, OPTIONS.bands)].append(candidate)
    assert len(bands) == OPTIONS.bands
    for band in bands.values():
        values = {c: (ms[c], known.error(c, rows)) for c in band}
        went_on = [2 * rows in known.rows[c] for c in ranked(band, values.__getitem__)]
        half = max(OPTIONS.kept, math.ceil(len(band) / 2))
        assert went_on == [True] * half + [False] * (len(band) - half)


def test_a_seed_decides_the_moves(tiny_space: Space) -> None:
    """Where all of the usual schedules start and one of them goes on, the same one with any seed."""
    given: dict[str, Any] = {"start": 1000, "bands": 1, "kept": 1}
    firsts = [search({"tiny": tiny_space}, Known(noise=0.5), rounds=0, seed=s, **given)[0] for s in (0, 1)]
    assert len(firsts[0]) == 1
    assert firsts[0] == firsts[1]
    tried = [
        search({"tiny": tiny_space}, Known(noise=0.5), rounds=1, seed=s, **given)[1].tried for s in (0, 1)
    ]
    assert tried[0].keys() != tried[1].keys()


def test_later_moves_go_less_far(tiny_space: Space) -> None:
    reaches: list[float] = []

    def recorded(schedule: Schedule, space: Space, random: np.random.Generator, reach: float) -> Any:
        reaches.append(reach)
        return neighbours(schedule, space, random, reach)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowturbo_trt.calibration.tune.search.neighbours", recorded)
        search({"tiny": tiny_space}, Known())
    assert list(dict.fromkeys(reaches)) == pytest.approx([1, 0.8, 0.64])


def test_every_band_goes_on(tiny_space: Space) -> None:
    best, _ = search({"tiny": tiny_space}, Known())
    # From two evaluations to six, and two steps R.
    edges = (1000 * (steady.OVERHEAD + 2 * 0.010), 1000 * (steady.OVERHEAD + 6 * 0.010 + 4 * 0.002))
    counts = Counter(band_of(t.ms, edges, OPTIONS.bands) for t in best)
    assert set(counts) == {0, 1, 2, 3}
    assert max(counts.values()) <= OPTIONS.kept
    # Of all together the fast ones would have been the worst.
    first, last = ([t.error for t in best if band_of(t.ms, edges, OPTIONS.bands) == band] for band in (0, 3))
    assert min(first) > max(last)


def test_nothing_is_tried_twice(golden_space: Space) -> None:
    _, found = search({"golden": golden_space}, Known())
    programs = [golden_space.program(candidate.schedule) for candidate in found.tried]
    meanings = [meaning(program) for program in programs if program is not None]
    assert len(meanings) == len(set(meanings)) == len(found.tried)


def test_own_schedules_and_tables_take_part(tiny_space: Space) -> None:
    table = SolverTable("own", (0, 0.4, 1), ((0.4,), (-0.1, 0.7)))
    space = replace(tiny_space, manifest=replace(tiny_space.manifest, tables=(table,)))
    own = tuple(Candidate("tiny", Schedule.parse(text)) for text in ("E1H1E1", "H25"))
    _, found = search({"tiny": space}, Known(), own, start=2, rounds=0)
    assert own[0] in found.tried
    assert Candidate("tiny", Schedule.of_table(table)) in found.tried
    # More evaluations than are asked for.
    assert own[1] not in found.tried


def test_engines_compete(tiny_space: Space) -> None:
    spaces = {"tiny": tiny_space, "other": replace(tiny_space, engines="other")}
    best, _ = search(spaces, Known(worst="tiny"))
    assert {t.candidate.engines for t in best} == {"other"}
    best, _ = search(spaces, Known())
    assert {t.candidate.engines for t in best} == {"tiny", "other"}


def test_the_schedules_of_one_go_to_the_engines_of_another(tiny_space: Space) -> None:
    spaces = {"tiny": tiny_space, "other": replace(tiny_space, engines="other")}
    _, found = search(spaces, Known(), start=60, rounds=6)
    usual = set(tiny_space.start())
    moved = Counter(c.schedule for c in found.tried if c.schedule.times and c.schedule not in usual)
    assert any(count == 2 for count in moved.values())


def test_nothing_finite(tiny_space: Space) -> None:
    with pytest.raises(CalibrationError, match="no candidate ends where numbers are finite"):
        search({"tiny": tiny_space}, Known(worst="tiny"))


def test_a_space_that_is_soon_exhausted(tiny_space: Space) -> None:
    few = replace(tiny_space, evaluations=2, refines=False)
    best, _ = search({"tiny": few}, Known(), rounds=1)
    assert best


def test_rungs_are_whole_batches() -> None:
    assert rungs(64, 8) == (16, 32, 64)
    assert rungs(64, 10) == (20, 40, 64)
    assert rungs(16, 64) == (16,)
    assert rungs(1, 1) == (1,)


def test_bands_are_equal_ratios() -> None:
    assert [band_of(ms, (1, 16), 4) for ms in (0.5, 1, 1.9, 2.1, 4.1, 8.1, 16, 99)] == [
        0,
        0,
        0,
        1,
        2,
        3,
        3,
        3,
    ]
    assert band_of(3, (2, 2), 4) == 0
