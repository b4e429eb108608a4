"""The trajectories a pipeline keeps bound, and who may start runs on them when."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from flowturbo_trt.runtime.backend import Backend, Run, Trajectory
from flowturbo_trt.sampling.program import Program

# Bound trajectories kept for reuse: a few schedules at a few batch sizes.
MAX_TRAJECTORIES = 16


class Lane:
    """A trajectory and the places for runs on it: a run has one from its start until it has been read.

    Runs take places in turn, as each overwrites the results of the one `depth` before it: that one must
    have been read, whichever others have been.
    """

    def __init__(self, trajectory: Trajectory, program: Program) -> None:
        self.trajectory = trajectory
        self._program = program
        self._places = deque(threading.Lock() for _ in range(trajectory.depth))

    def enter(self) -> threading.Lock:
        """Take the next place, waiting until its run has been read; it is given back by releasing it."""
        place = self._places[0]
        place.acquire()
        self._places.rotate(-1)
        return place

    def take_numbers(self, program: Program) -> None:
        """Let further runs have a program's times and coefficients; mostly they have them already."""
        if program is not self._program:
            self.trajectory.set_program(program)
            self._program = program

    def close(self) -> None:
        """Wait until every run has been read, and close the trajectory."""
        for place in self._places:
            place.acquire()
        self.trajectory.close()


class Lanes:
    """Lanes by program shape and batch size, the least recently used of which go first."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lanes: OrderedDict[tuple[object, ...], Lane] = OrderedDict()

    def lane(self, program: Program, batch: int, before_binding: Callable[[], None]) -> Lane:
        """Return buffers and bound engines for a program's shape, with this program's numbers.

        `before_binding` is called when a trajectory has to be bound, which may close another one: a
        caller must not then hold places of its own.
        """
        key = (program.shape, batch)
        if key not in self._lanes:
            before_binding()
            if len(self._lanes) == MAX_TRAJECTORIES:
                self._lanes.popitem(last=False)[1].close()
            self._lanes[key] = Lane(self._backend.bind(program, batch), program)
        self._lanes.move_to_end(key)
        lane = self._lanes[key]
        lane.take_numbers(program)
        return lane

    def close(self) -> None:
        """Close all lanes, waiting for runs that are still to be read."""
        while self._lanes:
            self._lanes.popitem()[1].close()


class Pending:
    """The runs of one call that have been started; `read` is given the rows of each, in order."""

    def __init__(self, read: Callable[[slice, Run], None]) -> None:
        self._read = read
        self._runs: deque[tuple[Lane, threading.Lock, slice, Run]] = deque()

    def start(self, lane: Lane, rows: slice, start: Callable[[], Run]) -> None:
        """Start a run as soon as there is a place for it."""
        # The call's own places first: nobody else gives those back.
        while sum(held is lane for held, *_ in self._runs) == lane.trajectory.depth:
            self._read_one()
        place = lane.enter()
        try:
            run = start()
        except BaseException:
            place.release()
            raise
        self._runs.append((lane, place, rows, run))

    def read_all(self) -> None:
        while self._runs:
            self._read_one()

    def abandon(self) -> None:
        """Give back the places of runs that nobody will read."""
        while self._runs:
            self._runs.popleft()[1].release()

    def _read_one(self) -> None:
        _, place, rows, run = self._runs.popleft()
        try:
            self._read(rows, run)
        finally:
            place.release()
