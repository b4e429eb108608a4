"""Local moves: from a schedule to ones beside it."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from flowturbo_trt.calibration.tune.candidates import LEAST_GUIDED, Space, with_kinds
from flowturbo_trt.calibration.tune.grids import Grid, from_lengths, power, shift, tidy, warp
from flowturbo_trt.sampling.schedule import Schedule, ScheduleError
from flowturbo_trt.sampling.steps import REFINER

# From a schedule, with `reach` how far to go (1: as far as at the start of a search), to another one.
Move = Callable[[Schedule, Space, np.random.Generator, float], Schedule | None]
# Edges of guidance move on a grid of these, so that they stay readable.
EDGE = 0.05


def neighbours(
    schedule: Schedule, space: Space, random: np.random.Generator, reach: float
) -> Iterator[Schedule]:
    """Yield schedules one move away, without end; some of them again and again."""
    moves = _moves(schedule, space)
    while moves:
        move = moves[int(random.integers(len(moves)))]
        try:
            made = move(schedule, space, random, reach)
        except ScheduleError:
            continue
        if made is not None and made != schedule:
            yield made


def _moves(schedule: Schedule, space: Space) -> list[Move]:
    """Return the moves that a schedule can make."""
    intervals: list[Move] = [_move_guidance] if space.unguides else []
    if schedule.table is not None:
        # Its kinds and times are the table's.
        return intervals
    moves = [_swap_kind, _move_border, _split_step, _merge_steps, _warp_grid, _scatter_grid]
    if len(schedule.kinds) > 1:
        # A grid is most of what is left to gain once the kinds are settled.
        moves += [_nudge_time, _nudge_time, _scatter_grid]
    if REFINER in schedule.kinds:
        moves.append(_change_reading)
    return [*moves, *intervals]


def _swap_kind(
    schedule: Schedule, space: Space, random: np.random.Generator, reach: float
) -> Schedule | None:
    kinds = list(schedule.kinds)
    kinds[int(random.integers(len(kinds)))] = str(random.choice(space.kinds))
    return with_kinds(kinds, schedule.times, schedule)


def _move_border(
    schedule: Schedule, space: Space, random: np.random.Generator, reach: float
) -> Schedule | None:
    """Let a group of steps take one from its neighbour, or at the end of the schedule become R."""
    kinds = list(schedule.kinds)
    borders = [i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]]
    if not borders:
        kinds[-1] = str(random.choice(space.kinds))
        return with_kinds(kinds, schedule.times, schedule)
    i = borders[int(random.integers(len(borders)))]
    if random.random() < 0.5:
        kinds[i] = kinds[i - 1]
    else:
        kinds[i - 1] = kinds[i]
    return with_kinds(kinds, schedule.times, schedule)


def _split_step(
    schedule: Schedule, space: Space, random: np.random.Generator, reach: float
) -> Schedule | None:
    kinds, grid = list(schedule.kinds), list(schedule.grid)
    i = int(random.integers(len(kinds)))
    kinds.insert(i, kinds[i])
    if not schedule.times:
        return with_kinds(kinds, (), schedule)
    grid.insert(i + 1, (grid[i] + grid[i + 1]) / 2)
    return _on(tidy(grid), kinds, schedule)


def _merge_steps(
    schedule: Schedule, space: Space, random: np.random.Generator, reach: float
) -> Schedule | None:
    kinds, grid = list(schedule.kinds), list(schedule.grid)
    if len(kinds) < 2:
        return None
    i = int(random.integers(len(kinds)))
    del kinds[i]
    if not schedule.times:
        return with_kinds(kinds, (), schedule)
    del grid[min(max(i, 1), len(grid) - 2)]
    return _on(tidy(grid), kinds, schedule)


def _warp_grid(
    schedule: Schedule, space: Space, random: np.random.Generator, reach: float
) -> Schedule | None:
    factor = float(np.exp(0.3 * reach * random.standard_normal()))
    by = shift(factor) if random.random() < 0.5 else power(factor)
    return _on(warp(schedule.grid, by), schedule.kinds, schedule)


def _nudge_time(
    schedule: Schedule, space: Space, random: np.random.Generator, reach: float
) -> Schedule | None:
    grid = list(schedule.grid)
    i = int(random.integers(1, len(grid) - 1))
    room = min(grid[i] - grid[i - 1], grid[i + 1] - grid[i])
    grid[i] += 0.5 * reach * float(random.standard_normal()) * room
    return _on(tidy(grid), schedule.kinds, schedule)


def _scatter_grid(
    schedule: Schedule, space: Space, random: np.random.Generator, reach: float
) -> Schedule | None:
    lengths = np.diff(schedule.grid)
    scattered = lengths * np.exp(0.2 * reach * random.standard_normal(len(lengths)))
    return _on(from_lengths(scattered.tolist()), schedule.kinds, schedule)


def _change_reading(
    schedule: Schedule, space: Space, random: np.random.Generator, reach: float
) -> Schedule | None:
    return replace(schedule, reading=str(random.choice(space.readings)))


def _move_guidance(
    schedule: Schedule, space: Space, random: np.random.Generator, reach: float
) -> Schedule | None:
    low, high = schedule.guided or (0.0, 1.0)
    by = EDGE * (1 + int(random.integers(4)))
    if random.random() < 0.5:
        low += by if random.random() < 0.5 else -by
    else:
        high += by if random.random() < 0.5 else -by
    low, high = round(max(low, 0.0), 2), round(min(high, 1.0), 2)
    if high - low < LEAST_GUIDED:
        return None
    return replace(schedule, guided=None if (low, high) == (0, 1) else (low, high))


def _on(times: Grid | None, kinds: list[str] | tuple[str, ...], like: Schedule) -> Schedule | None:
    return None if times is None else with_kinds(kinds, times, like)
