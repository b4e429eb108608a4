"""Trajectories: equal to the reference sampler bit for bit, bound once, and nothing stale in them."""

import inspect
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend
from flowturbo_trt.runtime.host_trajectory import HostTrajectory
from flowturbo_trt.runtime.pipeline import Pipeline, Step
from flowturbo_trt.runtime.trajectories import MAX_TRAJECTORIES
from flowturbo_trt.sampling import reference
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.tests.bundles import Array, latents
from flowturbo_trt.tests.runtime.engine_fields import decode, engine_fields

LABELS = [3, 8]
GUIDANCE = [1.5, -2.0]
EXACT = [
    "H1P5R3",
    "H2P1R2:consistent",
    "P2R2:single",
    "AB3x5",
    "AB4x6R1",
    "E2H1P1R1@0,0.05,0.3,0.35,0.9,1",
    "AB2x3@0,0.5,0.6,1",
    "E1",
    "H2P2R1:guided=0.2..0.6",
    "AB3x5R1:guided=0..0.3@0,0.1,0.3,0.5,0.6,0.7,1",
]


@pytest.fixture
def noise() -> Array:
    return np.random.default_rng(2).standard_normal((2, 4, 8, 8)).astype(np.float32)


@pytest.fixture
def backend(golden_bundle: Path) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(Bundle.open(golden_bundle), 1)


@pytest.mark.parametrize("variant", ["guided", "unguided"])
@pytest.mark.parametrize("schedule", EXACT)
def test_reference_sampler(
    golden_either: Path, golden_either_pipeline: Pipeline, noise: Array, schedule: str, variant: str
) -> None:
    """The slow sampler over the same engines: the same floats in every state and velocity."""
    guidance = GUIDANCE if variant == "guided" else [1, 1]
    program = trace(Schedule.parse(schedule), variant)
    fields = engine_fields(golden_either, program, LABELS, guidance)
    expected = list(reference.run(program, fields, noise))
    steps: list[tuple[Array, Array]] = []

    def keep(step: Step) -> None:
        steps.append((step.state.copy(), step.velocity.copy()))

    images = golden_either_pipeline(LABELS, noise=noise, guidance=guidance, schedule=schedule, on_step=keep)
    for (x, v), (x_expected, v_expected) in zip(steps, expected, strict=True):
        np.testing.assert_array_equal(x, x_expected)
        np.testing.assert_array_equal(v, v_expected)
    np.testing.assert_array_equal(images, decode(golden_either, expected[-1][0]))


def test_recorded_program_equals_a_traced_one(tiny_pipeline: Pipeline) -> None:
    """What the manifest holds, and the same schedule written so that the manifest does not know it."""
    recorded = latents(tiny_pipeline, [0, 1], "H1P1R1")
    grid = ",".join(f"{time:.17g}" for time in Schedule.parse("H1P1R1").grid)
    assert list(tiny_pipeline.manifest.programs) == ["H1P1R1", "H2"]
    np.testing.assert_array_equal(latents(tiny_pipeline, [0, 1], f"H1P1R1@{grid}"), recorded)


def bound(pipeline: Pipeline) -> list[HostTrajectory]:
    return [lane.trajectory for lane in pipeline._lanes._lanes.values()]  # type: ignore[misc]


def test_schedules_of_one_shape_share_a_trajectory(tiny_bundle: Path) -> None:
    """One set of buffers, and each schedule's own times and coefficients."""
    pipeline = Pipeline.load(tiny_bundle, threads=1)
    noise = np.random.default_rng(4).standard_normal((1, 2, 4, 4)).astype(np.float32)
    for text in ("H1P1R1", "H1P1R1@0,0.1,0.2,1", "H1P1R1@0,0.7,0.9,1", "H1P1R1"):
        program = trace(Schedule.parse(text), "guided")
        *_, (expected, _) = reference.run(program, engine_fields(tiny_bundle, program, [1], [2]), noise)
        np.testing.assert_array_equal(latents(pipeline, [1], text, noise=noise), expected)
    assert len(bound(pipeline)) == 1


def test_requests_in_turn_leave_nothing_behind(golden_pipeline: Pipeline) -> None:
    """A, B, A: neither another request nor another schedule, size or variant in between shows in A."""
    a: dict[str, Any] = {"labels": [1, 2, 3], "seeds": [4, 5, 6], "guidance": [1.5, 2, 2.5]}
    between: list[dict[str, Any]] = [
        {"labels": [7, 8, 9], "seeds": [1, 2, 3], "guidance": 4},
        {"labels": [0]},
        {"labels": [7, 8, 9], "guidance": 1},
        {"labels": [7, 8, 9], "schedule": "AB2x4"},
        {"labels": [7, 8, 9], "schedule": "H1P5R3:guided=0.3..0.6"},
        {"labels": [7, 8, 9], "schedule": "H1P5R3@0,0.01,0.02,0.03,0.04,0.05,0.06,0.07,0.08,1"},
        {"labels": [7], "noise": np.full((1, 4, 8, 8), 100, dtype=np.float32)},
    ]
    expected = golden_pipeline(**a)
    for b in between:
        assert not np.array_equal(golden_pipeline(**b), expected)
        np.testing.assert_array_equal(golden_pipeline(**a), expected)


def test_results_are_the_callers(golden_pipeline: Pipeline) -> None:
    """What was returned does not change with the next call, and may be written to."""
    first = golden_pipeline([1, 2])
    kept = first.copy()
    golden_pipeline([3, 4])
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    np.testing.assert_array_equal(golden_pipeline([1, 2]), kept)


def test_given_noise_is_not_written(golden_pipeline: Pipeline, noise: Array) -> None:
    kept = noise.copy()
    golden_pipeline(LABELS, noise=noise)
    np.testing.assert_array_equal(noise, kept)


def test_buffers_stay_where_they_are(golden_bundle: Path) -> None:
    pipeline = Pipeline.load(golden_bundle, threads=1)
    addresses: list[tuple[int, int]] = []

    def note(step: Step) -> None:
        addresses.append((step.state.ctypes.data, step.velocity.ctypes.data))

    for _ in range(3):
        pipeline([1, 2, 3], on_step=note)
    # Two batches of nine steps in every call.
    assert len(addresses) == 3 * 18
    assert addresses[:18] == addresses[18:36] == addresses[36:]
    assert len(bound(pipeline)) == 2


def test_running_allocates_nothing(tiny_either: Path) -> None:
    """Neither per step nor per run, but for the small buffers that NumPy iterates with; and no growth."""
    backend = OnnxRuntimeBackend(Bundle.open(tiny_either), 1)
    trajectory = backend.bind(trace(Schedule.parse("H2P2R2AB3x2"), "guided"), 2048)
    trajectory.start(decode=True)
    tracemalloc.start()
    try:
        trajectory.start(decode=True)
        held = runtime_bytes()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(3):
            trajectory.start(decode=True)
        _, peak = tracemalloc.get_traced_memory()
        growth = runtime_bytes() - held
    finally:
        tracemalloc.stop()
    latents_bytes = trajectory.start(decode=False).latents().nbytes
    assert latents_bytes == 2048 * 2 * 4 * 4 * 4
    assert peak - before < latents_bytes / 4
    assert growth < 1024


def runtime_bytes() -> int:
    """Return what the runtime's code holds; other threads of the process, pytest's among them, hold more."""
    here = tracemalloc.Filter(
        inclusive=True, filename_pattern=str(Path(inspect.getfile(HostTrajectory)).parent / "*")
    )
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([here]).traces)


def test_buffers_are_the_fewest(backend: OnnxRuntimeBackend) -> None:
    """Sixteen steps take no more memory than three: registers that are done with are used again."""

    def count(schedule: str) -> int:
        trajectory = backend.bind(trace(Schedule.parse(schedule), "guided"), 1)
        return len({register.ctypes.data for register in trajectory._registers})

    assert count("H1P8R7") == count("H1P1R1") <= 7


def test_trajectories_are_kept_for_the_last_shapes(tiny_bundle: Path) -> None:
    pipeline = Pipeline.load(tiny_bundle, threads=1)
    first = latents(pipeline, [1], "E1")
    kept = bound(pipeline)[0]
    for n in range(2, MAX_TRAJECTORIES + 1):
        latents(pipeline, [1], f"E{n}")
    np.testing.assert_array_equal(latents(pipeline, [1], "E1"), first)
    assert kept in bound(pipeline)
    # Used again just now, it outlives the one that was not.
    latents(pipeline, [1], "H1")
    assert len(bound(pipeline)) == MAX_TRAJECTORIES
    assert kept in bound(pipeline)
    for n in range(2, MAX_TRAJECTORIES + 1):
        latents(pipeline, [1], f"H{n}")
    assert kept not in bound(pipeline)
    np.testing.assert_array_equal(latents(pipeline, [1], "E1"), first)
