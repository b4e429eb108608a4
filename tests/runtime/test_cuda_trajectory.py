"""Trajectories on an emulated GPU: the host's numbers, always fresh, and nothing captured twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.runtime.backend import BackendError, Trajectory
from flowturbo_trt.runtime.cuda_trajectory import CudaTrajectory
from flowturbo_trt.tests.bundles import Array
from flowturbo_trt.tests.emulated_kernels import needs_compiler
from flowturbo_trt.tests.emulated_streams import POLICIES, Policy
from flowturbo_trt.tests.runtime.emulated_machines import (
    KINDS,
    NOTHING,
    Machine,
    fill,
    machine,
    program_of,
    run,
)

pytestmark = needs_compiler
TOLERANCE = 1e-5
SCHEDULES = ["H1P5R3", "P2R2:single", "H1R2:consistent", "AB4x6R1", "E2H1R1@0,0.05,0.3,0.35,1"]
INTERVALS = ["H2P2R1:guided=0.2..0.6", "AB3x5R1:guided=0..0.3"]
Steps = list[tuple[Array, Array, NDArray[np.uint8]]]


def watch(trajectory: Trajectory, seed: int = 0) -> tuple[Steps, NDArray[np.uint8]]:
    """Run with callbacks; return what they see, previews included, and the images."""
    steps: Steps = []

    def keep(mark: object, index: int) -> None:
        state, velocity = trajectory.state_after(index).copy(), trajectory.velocity_after(index).copy()
        steps.append((state, velocity, trajectory.preview(index).copy()))

    fill(trajectory, seed)
    return steps, trajectory.start(decode=True, on_step=keep).images().copy()


def images_of(trajectory: Trajectory, seed: int = 0) -> tuple[NDArray[np.uint8], Array]:
    fill(trajectory, seed)
    done = trajectory.start(decode=True)
    return done.images().copy(), done.latents().copy()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("variant", ["guided", "unguided"])
@pytest.mark.parametrize("text", [*SCHEDULES, *INTERVALS])
def test_equal_to_the_host(golden_either: Path, text: str, variant: str, policy: Policy) -> None:
    """To the bit where engines are called on the same rows: states, velocities, previews, images."""
    program = program_of(text, variant)
    found = machine(golden_either, policy, fixes_rows=False)
    host, device = found.engines.sessions.bind(program, 2), found.backend.bind(program, 2)
    for seed in (1, 2):
        (expected, expected_images), (steps, images) = watch(host, seed), watch(device, seed)
        for one, other in zip(steps, expected, strict=True):
            for array, expected_array in zip(one, other, strict=True):
                np.testing.assert_array_equal(array, expected_array)
        np.testing.assert_array_equal(images, expected_images)
        # The whole graph is the same again.
        whole_images, latents = images_of(device, seed)
        np.testing.assert_array_equal(whole_images, expected_images)
        np.testing.assert_array_equal(latents, expected[-1][0])
        np.testing.assert_array_equal(run(device, seed), expected[-1][0])
    device.close()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("text", ["H1P5R3", "AB4x40", "H2P2R1:guided=0.2..0.6"])
def test_conditioners_with_fixed_rows(golden_bundle: Path, text: str, policy: Policy) -> None:
    """In one chunk that is padded, or in several: as with all rows at once."""
    device = machine(golden_bundle, policy).bind(text)
    chunks = {c.network: c.calls for c in device._conditionings.values()}
    assert chunks["predictor"] == (2 if text == "AB4x40" else 1)
    host = machine(golden_bundle).engines.sessions.bind(program_of(text), 2)
    for seed in (1, 2):
        (expected, _), (steps, _) = watch(host, seed), watch(device, seed)
        for (x, v, _), (x_expected, v_expected, _) in zip(steps, expected, strict=True):
            assert relative_l2(x, x_expected) <= TOLERANCE
            assert relative_l2(v, v_expected) <= TOLERANCE
        np.testing.assert_array_equal(run(device, seed), steps[-1][0])


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Callable[..., Machine]:
    """Give a function that makes a machine of every kind of bundle."""
    fixture, fixes_rows = request.param

    def make(policy: Policy = "lazy", **options: Any) -> Machine:
        return machine(request.getfixturevalue(fixture), policy, fixes_rows=fixes_rows, **options)

    return make


Make = Callable[..., Machine]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_b_a(make: Make, policy: Policy) -> None:
    """Requests and schedules of the same shape, in turn: each fresh, and nothing is captured anew."""
    texts = ("H1P1R1", "H1P1R1@0,0.7,0.9,1")
    expected = {(text, seed): run(make(policy).bind(text), seed) for text in texts for seed in (1, 2)}
    assert len({latents.tobytes() for latents in expected.values()}) == 4
    found = make(policy)
    trajectory = found.bind(texts[0])
    run(trajectory)
    captures = found.device.asked["capture"]
    allocations = found.device.counters.allocations
    for text, seed in [*expected, *expected, *reversed(expected)]:
        trajectory.set_program(program_of(text))
        np.testing.assert_array_equal(run(trajectory, seed), expected[text, seed])
    assert found.device.asked["capture"] == captures == 1
    assert found.device.counters.allocations == allocations


@pytest.mark.parametrize("changed", ["noise", "label", "guidance"])
def test_every_input_is_fresh(make: Make, changed: str) -> None:
    """After the capture, what a run reads is what was written for it."""
    trajectory = make().bind("H1R1")
    for value in (0, 1, 0, 2):
        inputs, fresh = trajectory.inputs, make().bind("H1R1")
        for one in (inputs, fresh.inputs):
            one.noise[...] = 0.5 * (1 + value * (changed == "noise"))
            one.conditions["label"][...] = value * (changed == "label")
            one.guidance[...] = 1.5 + value * (changed == "guidance")
        found = trajectory.start(decode=False).latents().copy()
        np.testing.assert_array_equal(found, fresh.start(decode=False).latents())


def test_rows_at_different_times(make: Make) -> None:
    """Each row with times of its own is the row run alone; and they are set back for all."""
    texts = ("AB3x4R1", "AB3x4R1@0,0.3,0.35,0.4,0.9,1")
    found = make()
    alone = [run(found.bind(text), 5) for text in texts]
    trajectory = found.bind(texts[0])
    for row, text in enumerate(texts):
        trajectory.set_program(program_of(text), slice(row, row + 1))
    apart = run(trajectory, 5)
    for row in (0, 1):
        assert relative_l2(apart[row], alone[row][row]) <= TOLERANCE
    assert relative_l2(alone[0][1], alone[1][1]) > 100 * TOLERANCE
    trajectory.set_program(program_of(texts[0]))
    np.testing.assert_array_equal(run(trajectory, 5), alone[0])


def test_null_modulations_once_per_schedule(golden_bundle: Path) -> None:
    found = machine(golden_bundle)
    trajectory = found.bind("H1P1R1")
    run(trajectory)
    found.engines.counted()
    run(trajectory, 1)
    networks = {"predictor": 3, "refiner": 2, "predictor_conditioner": 1, "refiner_conditioner": 1}
    null = {"predictor_conditioner null": 1, "refiner_conditioner null": 1}
    assert found.engines.counted() == networks
    # The same program, set again by every request, is no change.
    trajectory.set_program(program_of("H1P1R1"))
    run(trajectory, 2)
    assert found.engines.counted() == networks
    for text in ("H1P1R1@0,0.2,0.5,1", "H1P1R1"):
        trajectory.set_program(program_of(text))
        for expected in (networks | null, networks):
            run(trajectory, 3)
            assert found.engines.counted() == expected


def test_one_launch_a_run(make: Make) -> None:
    """Of a graph; with callbacks one for each step, and one for decoding."""
    found = make()
    trajectory, device = found.bind("H1P5R3"), found.device
    assert (trajectory.depth, trajectory.is_captured) == (2, True)
    watch(trajectory)
    images_of(trajectory)
    run(trajectory)
    before = device.counters
    images_of(trajectory)
    run(trajectory)
    after = device.counters
    assert after.graph_launches - before.graph_launches == 2
    assert after.launches == before.launches
    found.engines.counted()
    evaluated: list[int] = []
    fill(trajectory)
    trajectory.start(
        decode=True,
        on_step=lambda mark, index: evaluated.append(
            found.engines.runs["predictor"] + found.engines.runs["refiner"]
        ),
    )
    # Each step is over when it is told of.
    assert evaluated == [2, 3, 4, 5, 6, 7, 9, 11, 13]
    stepwise = device.counters
    assert stepwise.graph_launches - after.graph_launches == 9 + 1
    assert stepwise.launches == after.launches
    # All of them were captured once: whole with and without decoding, nine steps, decoding.
    assert found.device.asked["capture"] == stepwise.live_graphs == 2 + 9 + 1


def test_captures_are_made_when_needed(make: Make) -> None:
    found = make()
    trajectory = found.bind("H1P1R1")
    assert found.device.asked["capture"] == 0
    for captures, ask in enumerate((run, images_of), start=1):
        for _ in range(2):
            ask(trajectory)
            assert found.device.asked["capture"] == captures
    other = found.bind("H1P2R1")
    run(other)
    assert found.device.asked["capture"] == 3


@pytest.mark.parametrize("policy", POLICIES)
def test_a_callback_that_raises(make: Make, policy: Policy) -> None:
    """Ends its run, at whichever step; the next are as if it had not been."""
    found = make(policy)
    trajectory = found.bind("H1P1R1")
    expected, expected_steps = run(trajectory, 3), watch(trajectory, 3)[0]

    def cancel(at: int) -> Callable[[object, int], None]:
        def on_step(mark: object, index: int) -> None:
            if index == at:
                raise KeyboardInterrupt

        return on_step

    for at in (0, 1, 2):
        fill(trajectory, 4)
        with pytest.raises(KeyboardInterrupt):
            trajectory.start(decode=True, on_step=cancel(at))
        np.testing.assert_array_equal(run(trajectory, 3), expected)
        np.testing.assert_array_equal(watch(trajectory, 3)[0][-1][0], expected_steps[-1][0])
    trajectory.close()
    found.backend.close()
    assert found.held == NOTHING


def test_a_decoder_that_is_missing(golden_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine(golden_bundle)
    trajectory = found.bind("E1")
    monkeypatch.setattr(trajectory, "_decoder", None)
    with pytest.raises(BackendError, match="no decoder; ask for latents"):
        trajectory.start(decode=True)
    with pytest.raises(BackendError, match="no decoder to preview with"):
        trajectory.preview(0)
    fill(trajectory)
    latents_only = trajectory.start(decode=False)
    with pytest.raises(BackendError, match="the run was started without decoding"):
        latents_only.images()


@pytest.mark.parametrize("fault", ["waiting", "uncapturable"])
def test_piece_by_piece(golden_either: Path, fault: str) -> None:
    """Where graphs are not to be had, and need not be: said, and equal."""
    expected = machine(golden_either).bind("H1P1R1")
    found = machine(golden_either, must_capture=False)
    setattr(found.engines, fault, "predictor")
    trajectory = found.bind("H1P1R1")
    for seed in (1, 2):
        np.testing.assert_array_equal(images_of(trajectory, seed)[0], images_of(expected, seed)[0])
        assert not trajectory.is_captured
        for one, other in zip(watch(trajectory, seed)[0], watch(expected, seed)[0], strict=True):
            for array, expected_array in zip(one, other, strict=True):
                np.testing.assert_array_equal(array, expected_array)
    assert expected.is_captured
    trajectory.close()
    found.backend.close()
    assert found.held == NOTHING


def test_a_thousand_runs_leave_nothing(tiny_bundle: Path) -> None:
    found = machine(tiny_bundle, "eager")
    trajectory: CudaTrajectory = found.bind("E1", 1)
    expected = [images_of(trajectory, seed)[0] for seed in (0, 1)]
    watch(trajectory)
    before, allocations = found.held, found.device.counters.allocations
    kernels, captures = found.device.asked["load_kernels"], found.device.asked["capture"]
    for n in range(1000):
        images, _ = images_of(trajectory, n % 2)
        assert np.array_equal(images, expected[n % 2])
    assert found.held == before
    assert found.device.counters.allocations == allocations
    assert (found.device.asked["load_kernels"], found.device.asked["capture"]) == (kernels, captures)
    trajectory.close()
    found.backend.close()
    assert found.held == NOTHING
