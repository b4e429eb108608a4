"""Trajectories in host memory: hoisted conditioning, rows at times of their own, and what is called when."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.backend_onnxruntime import NAME, OnnxRuntimeBackend
from flowturbo_trt.runtime.host_trajectory import HostEngine, HostTrajectory
from flowturbo_trt.runtime.pipeline import Pipeline, Step
from flowturbo_trt.sampling.program import Program, StepMark
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.tests.bundles import SCHEDULES, Array

# Float32 in batches of other sizes: what remains is the order of summation.
TOLERANCE = 1e-5
LABELS = (3, 8)
NULL = 10


def program_of(text: str, variant: str = "guided") -> Program:
    return trace(Schedule.parse(text), variant)


class Engines:
    """A bundle's engines, which count their calls: those of conditioners for the null label apart."""

    def __init__(self, path: Path) -> None:
        self.manifest = Bundle.open(path).manifest
        self.backend = OnnxRuntimeBackend(Bundle.open(path), 1)
        self.calls: Counter[str] = Counter()
        self.bound: Counter[str] = Counter()
        self.failing = ""

    def bind(self, text: str, batch: int, variant: str = "guided") -> HostTrajectory:
        return HostTrajectory(program_of(text, variant), batch, self.manifest, NAME, self.engine)

    def engine(self, network: str, variant: str | None) -> HostEngine:
        return _Counted(self, network, self.backend.engine(network, variant))

    def counted(self) -> dict[str, int]:
        """Return the calls since this was last asked."""
        counts = dict(self.calls)
        self.calls.clear()
        return counts


class _Counted:
    def __init__(self, engines: Engines, network: str, engine: HostEngine) -> None:
        self._engines, self._network, self._engine = engines, network, engine

    def bind(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> Callable[[], None]:
        engines, network, call = self._engines, self._network, self._engine.bind(inputs, outputs)
        engines.bound[network] += 1

        def counted() -> None:
            is_null = "label" in inputs and bool((inputs["label"] == NULL).all())
            name = network + " null" * is_null
            if name == engines.failing:
                raise BackendError(f"{name} failed")
            engines.calls[name] += 1
            call()

        return counted


def noise_of(rows: int) -> Array:
    return np.random.default_rng(2).standard_normal((rows, 4, 8, 8)).astype(np.float32)


def run(trajectory: HostTrajectory, guidance: Sequence[float] = (1.5, -2.0), first: int = 0) -> Array:
    """Return the latents of LABELS, or of the last of them, from noise of their own."""
    inputs, rows = trajectory.inputs, slice(first, first + len(trajectory.inputs.noise))
    inputs.noise[...] = noise_of(2)[rows]
    inputs.conditions["label"][...] = LABELS[rows]
    inputs.guidance[...] = guidance[rows]
    return trajectory.start(decode=False).latents().copy()


@pytest.fixture
def engines(golden_bundle: Path) -> Engines:
    return Engines(golden_bundle)


def steps_of(pipeline: Pipeline, **arguments: Any) -> tuple[list[tuple[Array, Array]], NDArray[np.uint8]]:
    steps: list[tuple[Array, Array]] = []

    def keep(step: Step) -> None:
        steps.append((step.state.copy(), step.velocity.copy()))

    return steps, pipeline(on_step=keep, **arguments)


MORE = ("E1", "AB3x5R1", "P3R2:single", "H2R1:consistent@0,0.3,0.4,1", "H2P2R1:guided=0.2..0.5")


def assert_agree(one: Pipeline, other: Pipeline, **arguments: Any) -> None:
    (steps, images), (expected, expected_images) = (steps_of(p, **arguments) for p in (one, other))
    for (x, v), (x_expected, v_expected) in zip(steps, expected, strict=True):
        assert relative_l2(x, x_expected) <= TOLERANCE
        assert relative_l2(v, v_expected) <= TOLERANCE
    assert np.abs(images.astype(int) - expected_images.astype(int)).max() <= 1


@pytest.mark.parametrize("guidance", [[1.5, -2.0], 0, 1, 4.0])
@pytest.mark.parametrize("schedule", [*SCHEDULES, *MORE])
def test_hoisted_equals_fused(
    golden_pipeline: Pipeline, golden_fused_pipeline: Pipeline, schedule: str, guidance: Any
) -> None:
    """In every state, both halves of every velocity, and the images: guided in some channels …"""
    arguments = {"labels": LABELS, "seeds": [4, 5], "schedule": schedule, "guidance": guidance}
    assert_agree(golden_pipeline, golden_fused_pipeline, **arguments)


@pytest.mark.parametrize("guidance", [[1.5, -2.0, 1.0], 0, 1])
@pytest.mark.parametrize("schedule", [*SCHEDULES, *MORE[:-1]])
def test_hoisted_equals_fused_in_all_channels(
    tiny_pipeline: Pipeline, tiny_fused_bundle: Path, schedule: str, guidance: Any
) -> None:
    """… and in all channels, by guided engines alone."""
    arguments = {"labels": [0, 2, 1], "seeds": [4, 5, 6], "schedule": schedule, "guidance": guidance}
    assert_agree(tiny_pipeline, Pipeline.load(tiny_fused_bundle, threads=1), **arguments)


def test_calls(engines: Engines) -> None:
    """One conditioner call each for all steps; the null condition's once per schedule, not per request."""
    trajectory = engines.bind("H1P1R1", 2)
    expected = run(trajectory)
    networks = {"predictor": 3, "refiner": 2, "predictor_conditioner": 1, "refiner_conditioner": 1}
    null = {"predictor_conditioner null": 1, "refiner_conditioner null": 1}
    assert engines.counted() == networks | null
    for guidance in ((3.0, 0.5), (1.5, -2.0)):
        again = run(trajectory, guidance)
        assert engines.counted() == networks
    np.testing.assert_array_equal(again, expected)
    # Setting the same program is no change, and coefficients alone are none of a time.
    trajectory.set_program(program_of("H1P1R1"))
    run(trajectory)
    assert engines.counted() == networks
    trajectory.set_program(program_of("H1P1R1@0,0.2,0.5,1"))
    run(trajectory)
    assert engines.counted() == networks | null
    trajectory.set_program(program_of("H1P1R1@0,0.2,0.6,1"), slice(1, 2))
    run(trajectory)
    assert engines.counted() == networks | null
    run(trajectory)
    assert engines.counted() == networks


def test_calls_of_other_kinds(engines: Engines, golden_fused_bundle: Path) -> None:
    run(engines.bind("H1P1R1", 2, "unguided"))
    expected = {"predictor": 3, "refiner": 2, "predictor_conditioner": 1, "refiner_conditioner": 1}
    assert engines.counted() == expected
    run(engines.bind("H1P1R1:guided=0..0.4", 2))
    assert engines.counted() == expected | {"predictor_conditioner null": 1}
    fused = Engines(golden_fused_bundle)
    run(fused.bind("H1P1R1", 2))
    assert fused.counted() == {"predictor": 3, "refiner": 2}


@pytest.mark.parametrize("run_between", [True, False])
def test_schedules_in_turn(engines: Engines, golden_fused_bundle: Path, run_between: bool) -> None:
    """A, B, A of one shape: the modulations are those of the times that are set."""
    a, b = "H1P1R1", "H1P1R1@0,0.7,0.9,1"
    trajectory, fused = engines.bind(a, 2), Engines(golden_fused_bundle)
    expected = {text: run(fused.bind(text, 2)) for text in (a, b)}
    assert relative_l2(expected[a], expected[b]) > 100 * TOLERANCE
    for text in (a, b, a, b):
        trajectory.set_program(program_of(text))
        if run_between or text == a:
            assert relative_l2(run(trajectory), expected[text]) <= TOLERANCE


GRIDS = [
    ("H1P2R1", "H1P2R1@0,0.6,0.7,0.8,1"),
    ("AB3x4R1", "AB3x4R1@0,0.3,0.35,0.4,0.9,1"),
    ("E4:guided=0.2..0.6", "E4:guided=0.45..0.6@0,0.45,0.6,0.9,0.95"),
    ("E1", "E1@0.5,0.75"),
]


@pytest.mark.parametrize("texts", GRIDS)
def test_rows_at_different_times(
    golden_either: Path, golden_fused_bundle: Path, texts: Sequence[str]
) -> None:
    """Each row with times, label and guidance of its own is the row run alone."""
    assert program_of(texts[0]).shape == program_of(texts[1]).shape
    fused, alone = Engines(golden_fused_bundle), []
    for row, text in enumerate(texts):
        alone.append(run(fused.bind(text, 1), first=row)[0])
    trajectory = Engines(golden_either).bind(texts[0], 2)
    together = run(trajectory)
    for row, text in enumerate(texts):
        trajectory.set_program(program_of(text), slice(row, row + 1))
    apart = run(trajectory)
    for row in (0, 1):
        assert relative_l2(apart[row], alone[row]) <= TOLERANCE
    # Times matter, so that the other row's would have shown; and they are set back for all rows.
    assert relative_l2(together[1], alone[1]) > 100 * TOLERANCE
    trajectory.set_program(program_of(texts[0]))
    np.testing.assert_array_equal(run(trajectory), together)


def test_all_times_zero(engines: Engines, golden_fused_bundle: Path) -> None:
    """Times as memory holds them at first, which nothing has been computed for."""
    found = run(engines.bind("E1", 2))
    assert engines.counted() == {
        "predictor": 1,
        "predictor_conditioner": 1,
        "predictor_conditioner null": 1,
    }
    assert relative_l2(found, run(Engines(golden_fused_bundle).bind("E1", 2))) <= TOLERANCE


def test_null_modulations_after_a_failure(engines: Engines, golden_fused_bundle: Path) -> None:
    """Computed in part, they are computed anew."""
    trajectory = engines.bind("H1P1R1", 2)
    run(trajectory)
    text = "H1P1R1@0,0.2,0.5,1"
    trajectory.set_program(program_of(text))
    engines.failing = "refiner_conditioner null"
    with pytest.raises(BackendError, match="refiner_conditioner null failed"):
        run(trajectory)
    engines.failing = ""
    assert relative_l2(run(trajectory), run(Engines(golden_fused_bundle).bind(text, 2))) <= TOLERANCE


def test_decoder_is_bound_when_needed(engines: Engines) -> None:
    trajectory = engines.bind("E1", 2)
    latents_only = trajectory.start(decode=False)
    assert engines.bound["decoder"] == 0
    with pytest.raises(BackendError, match="the run was started without decoding"):
        latents_only.images()
    for _ in range(2):
        images = trajectory.start(decode=True).images()
        assert engines.bound["decoder"] == 1
    assert (images.shape, str(images.dtype)) == ((2, 16, 16, 3), "uint8")
    assert engines.counted()["decoder"] == 2
    # A preview has arrays of its own, and binds nothing else.
    watched = engines.bind("E2", 2)

    def look(mark: StepMark, index: int) -> None:
        watched.preview(index)

    for _ in range(2):
        watched.start(decode=False, on_step=look)
    assert engines.bound["decoder"] == 2
    assert engines.counted()["decoder"] == 4
