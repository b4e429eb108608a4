"""Places on trajectories: calls from several threads get theirs, keep them no longer than they need, and
nothing is read too late. With runs that go on after they were started, as on a GPU."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.pipeline import Pipeline, Step
from flowturbo_trt.runtime.request import RequestError, make_request
from flowturbo_trt.runtime.trajectories import Lanes
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.tests.bundles import Array, latents
from flowturbo_trt.tests.runtime.fake_trajectories import Calls, FakeBackend, FakeTrajectory, Waiting

# Long enough for a thread to get where it should not.
MOMENT = 0.05


@pytest.fixture
def make(golden_bundle: Path) -> Callable[[int], tuple[Pipeline, FakeBackend]]:
    """Give a function that makes a pipeline over trajectories of some depth; batches are 1 and 2."""

    def make(depth: int) -> tuple[Pipeline, FakeBackend]:
        bundle = Bundle.open(golden_bundle)
        backend = FakeBackend(bundle.manifest.model, depth)
        return Pipeline(bundle, backend), backend

    return make


Make = Callable[[int], tuple[Pipeline, FakeBackend]]


def request(rows: int, schedule: str, seed: int = 0) -> tuple[dict[str, Any], Array]:
    """Return a request and what a fake trajectory makes of it."""
    random = np.random.default_rng(seed)
    labels, guidance = random.integers(0, 10, rows), random.uniform(1.5, 3, rows).astype(np.float32)
    noise = random.standard_normal((rows, 4, 8, 8)).astype(np.float32)
    expected = noise * guidance[:, None, None, None] + labels[:, None, None, None].astype(np.float32)
    expected[:, 0, 0, 0] = sum(trace(Schedule.parse(schedule), "guided").times())
    return {"labels": labels, "guidance": guidance, "noise": noise, "schedule": schedule}, expected


def check(pipeline: Pipeline, rows: int, schedule: str, seed: int = 0) -> None:
    arguments, expected = request(rows, schedule, seed)
    np.testing.assert_array_equal(latents(pipeline, **arguments), expected)


@pytest.mark.parametrize("kept", [1, 2, 16])
@pytest.mark.parametrize("depth", [1, 2])
def test_many_threads(make: Make, monkeypatch: pytest.MonkeyPatch, depth: int, kept: int) -> None:
    """Requests larger than all places, of all sizes and shapes, with more shapes than are kept."""
    monkeypatch.setattr("flowturbo_trt.runtime.trajectories.MAX_TRAJECTORIES", kept)
    pipeline, backend = make(depth)
    backend.reading = lambda trajectory: time.sleep(0.0005)  # type: ignore[method-assign]
    schedules = ("E1", "H1P1", "H1P1@0,0.25,1", "H1P1@0,0.125,1", "AB2x3")

    def work(thread: int) -> None:
        for n in range(15):
            check(pipeline, 1 + (3 * thread + n) % 7, schedules[(thread + n) % 5], 100 * thread + n)

    Calls(*(lambda thread=thread: work(thread) for thread in range(6))).finish()
    open_ones = [trajectory for trajectory in backend.bound if not trajectory.closed]
    assert len(open_ones) == min(kept, 6)


@pytest.mark.parametrize(("depth", "expected"), [(1, "srsrsrsrsr"), (2, "ssrsrsrrsr"), (3, "sssrsrrrsr")])
def test_order_in_one_call(make: Make, depth: int, expected: str) -> None:
    """Four batches of two and one of one: read as late as possible, and before another size is bound."""
    pipeline, backend = make(depth)
    order: list[str] = []
    backend.starting = lambda trajectory: order.append("s")  # type: ignore[method-assign]
    backend.reading = lambda trajectory: order.append("r")  # type: ignore[method-assign]
    Calls(lambda: check(pipeline, 9, "E2")).finish()
    assert "".join(order) == expected


def test_next_call_starts_while_one_is_read(make: Make) -> None:
    pipeline, backend = make(2)
    read = backend.reading = Waiting()  # type: ignore[method-assign]
    first = Calls(lambda: check(pipeline, 1, "E1", 1))
    read.wait_until_reached()
    (trajectory,) = backend.bound
    assert trajectory.started == 1
    second = Calls(lambda: check(pipeline, 1, "E1", 2))
    read.wait_until_reached()
    assert trajectory.started == 2
    read.go.set()
    first.finish()
    second.finish()


@pytest.mark.parametrize("depth", [1, 2])
def test_a_call_without_a_place_waits(make: Make, depth: int) -> None:
    """What has not been read is not overwritten; another shape has places of its own, but takes its turn."""
    pipeline, backend = make(depth)
    read = backend.reading = Waiting()  # type: ignore[method-assign]
    calls = Calls(*(lambda seed=seed: check(pipeline, 1, "E1", seed) for seed in range(depth)))
    for _ in range(depth):
        read.wait_until_reached()
    late = Calls(lambda: check(pipeline, 1, "E1", 9))
    assert not read.reached.acquire(timeout=MOMENT)
    assert backend.bound[0].started == depth
    read.go.set()
    calls.finish()
    late.finish()
    assert backend.bound[0].started == depth + 1


def test_the_oldest_run_is_waited_for(make: Make) -> None:
    """Each run overwrites the one `depth` before it, though a later one may have been read already."""
    pipeline, backend = make(2)
    read = backend.reading = Waiting()  # type: ignore[method-assign]
    slow = Calls(lambda: check(pipeline, 1, "E1", 1))
    read.wait_until_reached()
    backend.reading = lambda trajectory: None  # type: ignore[method-assign]
    Calls(lambda: check(pipeline, 1, "E1", 2)).finish()
    late = Calls(lambda: check(pipeline, 1, "E1", 3))
    time.sleep(MOMENT)
    assert backend.bound[0].started == 2
    read.go.set()
    slow.finish()
    late.finish()


def test_shapes_do_not_wait_for_each_other(make: Make) -> None:
    pipeline, backend = make(1)
    read = backend.reading = Waiting()  # type: ignore[method-assign]
    calls = Calls(lambda: check(pipeline, 1, "E1"), lambda: check(pipeline, 1, "H1"))
    for _ in range(2):
        read.wait_until_reached()
    read.go.set()
    calls.finish()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("fault", ["fails_to_start", "fails_to_read"])
def test_failures_keep_no_places(make: Make, depth: int, fault: str) -> None:
    """Whether a run does not start, or is never read: there are as many places as before."""
    pipeline, backend = make(depth)
    for _ in range(3):
        setattr(backend, fault, True)
        call = Calls(lambda: check(pipeline, 9, "E1"))
        with pytest.raises(BackendError):
            call.finish()
        setattr(backend, fault, False)
        Calls(lambda: check(pipeline, 9, "E1")).finish()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("when", [0, 1, 4])
def test_cancelled_calls_keep_no_places(make: Make, depth: int, when: int) -> None:
    """Runs that were started before the one in which a callback raised are given up."""
    pipeline, _ = make(depth)
    asked = make_request(pipeline.manifest.model, {"label": [1] * 9}, None, None, None)

    def cancel(step: Step) -> None:
        if step.rows.start == 2 * when:
            raise KeyboardInterrupt

    def cancelled() -> None:
        with pytest.raises(KeyboardInterrupt):
            pipeline.generate(asked, "E1", decode=False, on_step=cancel)

    for _ in range(3):
        Calls(cancelled).finish()
        Calls(lambda: check(pipeline, 9, "E1")).finish()


def test_eviction_waits_until_runs_are_read(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowturbo_trt.runtime.trajectories.MAX_TRAJECTORIES", 1)
    pipeline, backend = make(2)
    read = backend.reading = Waiting()  # type: ignore[method-assign]
    first = Calls(lambda: check(pipeline, 1, "E1"))
    read.wait_until_reached()
    second = Calls(lambda: check(pipeline, 1, "H1"))
    assert not read.reached.acquire(timeout=MOMENT)
    (trajectory,) = backend.bound
    assert not trajectory.closed
    read.go.set()
    first.finish()
    second.finish()
    assert [trajectory.closed for trajectory in backend.bound] == [True, False]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_call_may_evict_its_own_trajectory(make: Make, monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    """Its runs are read before it waits for their places."""
    monkeypatch.setattr("flowturbo_trt.runtime.trajectories.MAX_TRAJECTORIES", 1)
    pipeline, backend = make(depth)
    Calls(lambda: check(pipeline, 3, "E1")).finish()
    assert [(trajectory.batch, trajectory.closed) for trajectory in backend.bound] == [(2, True), (1, False)]


def test_lanes_are_by_shape_and_batch(make: Make) -> None:
    """Those of one shape take the program's numbers; the least recently used goes first."""
    _, backend = make(1)
    lanes = Lanes(backend)
    binding: list[int] = []

    def lane(text: str, batch: int) -> FakeTrajectory:
        program = trace(Schedule.parse(text), "guided")
        trajectory = lanes.lane(program, batch, lambda: binding.append(len(backend.bound))).trajectory
        assert isinstance(trajectory, FakeTrajectory)
        assert trajectory.program is program
        return trajectory

    first = lane("H2", 1)
    assert lane("H2@0,0.25,1", 1) is first
    assert lane("H2", 2) is not first
    assert lane("H3", 1) is not first
    # Asked for before each binding, and never else.
    assert binding == [0, 1, 2]
    for n in range(2, 14):
        lane(f"E{n}", 1)
    assert lane("H2", 1) is first
    lane("E15", 1)
    assert not any(trajectory.closed for trajectory in backend.bound)
    lane("E16", 1)
    assert [trajectory for trajectory in backend.bound if trajectory.closed] == [backend.bound[1]]


def test_close(make: Make) -> None:
    """Once every run has been read: all trajectories, then the backend."""
    pipeline, backend = make(2)
    check(pipeline, 3, "E1")
    read = backend.reading = Waiting()  # type: ignore[method-assign]
    call = Calls(lambda: check(pipeline, 1, "E1"))
    read.wait_until_reached()
    closing = Calls(pipeline.close)
    time.sleep(MOMENT)
    assert not backend.closed
    read.go.set()
    call.finish()
    closing.finish()
    assert backend.closed
    assert [trajectory.closed for trajectory in backend.bound] == [True, True]


def test_close_after_a_block(make: Make) -> None:
    pipeline, backend = make(1)
    with pipeline as entered:
        assert entered is pipeline
        check(pipeline, 2, "E1")
        assert not backend.closed
    assert backend.closed


def test_close_within_a_call(make: Make) -> None:
    """It would wait for itself."""
    pipeline, backend = make(1)
    arguments, _ = request(1, "E1")
    call = Calls(lambda: pipeline(**arguments, on_step=lambda step: pipeline.close()))
    with pytest.raises(RequestError, match="from within its own on_step"):
        call.finish()
    assert not backend.closed
    Calls(lambda: check(pipeline, 1, "E1")).finish()
