"""Whole pipelines on an emulated GPU: the authors' trajectories, requests in turn, and several threads."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.cuda_run import CudaRun
from flowturbo_trt.runtime.pipeline import Pipeline, Step
from flowturbo_trt.tests.bundles import SCHEDULES, latents
from flowturbo_trt.tests.emulated_kernels import needs_compiler
from flowturbo_trt.tests.emulated_streams import POLICIES, Policy
from flowturbo_trt.tests.runtime.emulated_machines import KINDS, NOTHING, WatchedDevice, machine
from flowturbo_trt.tests.runtime.test_golden_trajectories import TOLERANCE, halves

pytestmark = needs_compiler
ROOT = Path(__file__).parents[2]
Arrays = Mapping[str, NDArray[Any]]
LABELS, SEEDS = [7, 0, 1, 9, 7, 3, 3], [5, 2**64 - 1, 0, 5, 6, 77, 1000]
# Long enough for any of these on a slow machine: only a deadlock takes longer.
PATIENCE = 60


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def kind(request: pytest.FixtureRequest) -> tuple[Path, bool]:
    fixture, fixes_rows = request.param
    return request.getfixturevalue(fixture), fixes_rows


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_goldens(kind: tuple[Path, bool], golden: Arrays, schedule: str, policy: Policy) -> None:
    """Every state, both halves of every velocity passed on, and the same as one graph."""
    path, fixes_rows = kind
    pipeline = machine(path, policy, fixes_rows=fixes_rows).pipeline()
    expected_x = halves(golden[f"{schedule}_x"])[1:, :, 0]
    expected_v = halves(golden[f"{schedule}_v"])
    states, velocities = np.full_like(expected_x, np.nan), np.full_like(expected_v, np.nan)

    def record(step: Step) -> None:
        states[step.index, step.rows] = step.state
        velocities[step.index, step.rows] = step.velocity

    asked: dict[str, Any] = {"noise": golden["z"], "guidance": 1.5, "schedule": schedule}
    images = pipeline(golden["y"], **asked, on_step=record)
    for index in range(len(expected_v)):
        assert relative_l2(states[index], expected_x[index]) <= TOLERANCE
        for half in (0, 1):
            assert relative_l2(velocities[index, :, half], expected_v[index, :, half]) <= TOLERANCE
    np.testing.assert_array_equal(latents(pipeline, golden["y"], **asked), states[-1])
    np.testing.assert_array_equal(pipeline(golden["y"], **asked), images)


@pytest.mark.parametrize("policy", POLICIES)
def test_requests_in_turn(kind: tuple[Path, bool], policy: Policy) -> None:
    """A, B, A over several batches: nothing of another request shows, and only another shape is captured."""
    path, fixes_rows = kind
    found = machine(path, policy, fixes_rows=fixes_rows)
    pipeline = found.pipeline()
    a: dict[str, Any] = {"labels": LABELS, "seeds": SEEDS, "guidance": 1.5, "schedule": "H1P1R1"}
    expected = pipeline(**a)
    # Batches of two and of one, each captured once.
    assert found.device.asked["capture"] == 2
    same: list[dict[str, Any]] = [
        {"labels": [*LABELS[1:], 2]},
        {"seeds": [*SEEDS[1:], 2]},
        {"guidance": 4},
        {"guidance": [1.5, 2, 3, 4, 1, 0, -1]},
        {"schedule": "H1P1R1@0,0.1,0.2,1"},
    ]
    for change in same:
        assert not np.array_equal(pipeline(**(a | change)), expected)
        np.testing.assert_array_equal(pipeline(**a), expected)
    assert found.device.asked["capture"] == 2
    others: list[dict[str, Any]] = [{"schedule": "AB2x3"}, {"guidance": 1}]
    for captures, change in enumerate(others, start=2):
        assert not np.array_equal(pipeline(**(a | change)), expected)
        np.testing.assert_array_equal(pipeline(**a), expected)
        assert found.device.asked["capture"] == 2 * captures
    pipeline.close()
    assert found.held == NOTHING


def test_equal_to_the_host(golden_either: Path) -> None:
    """Seven rows in four batches, more than there are places for."""
    found = machine(golden_either, fixes_rows=False)
    pipeline, host = found.pipeline(), Pipeline(found.bundle, found.engines.sessions)
    for schedule in ("H1P1R1", "E2", "H2P2R1:guided=0.2..0.6"):
        asked: dict[str, Any] = {"labels": LABELS, "seeds": SEEDS, "schedule": schedule}
        np.testing.assert_array_equal(pipeline(**asked), host(**asked))


def test_one_graph_a_batch(tiny_bundle: Path) -> None:
    found = machine(tiny_bundle)
    pipeline = found.pipeline()
    pipeline([0, 1, 2] * 3)
    before = found.device.counters
    pipeline([0, 1, 2] * 3)
    after = found.device.counters
    # Batches of three.
    assert after.graph_launches - before.graph_launches == 3
    assert (after.launches, after.live_bytes) == (before.launches, before.live_bytes)


def test_callbacks_that_raise(kind: tuple[Path, bool]) -> None:
    path, fixes_rows = kind
    pipeline = machine(path, fixes_rows=fixes_rows).pipeline()
    expected = pipeline(LABELS, seeds=SEEDS, schedule="H1R1")

    def cancel(step: Step) -> None:
        if step.rows.start == 2 and step.index == 1:
            raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            pipeline(LABELS, seeds=SEEDS, schedule="H1R1", on_step=cancel)
        np.testing.assert_array_equal(pipeline(LABELS, seeds=SEEDS, schedule="H1R1"), expected)


def in_threads(*works: Callable[[], object]) -> None:
    """Run works at once; raise what they raise, and on deadlocks."""
    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result(PATIENCE)


def calls(n: int) -> list[dict[str, Any]]:
    return [
        {"labels": LABELS[:rows], "seeds": SEEDS[n : n + 1] * rows, "guidance": scale, "schedule": schedule}
        for rows in (1, 2, 5)
        for scale in (1, 1.5)
        for schedule in ("H1R1", "H1R1@0,0.8,1", "E2")
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_threads_on_one_pipeline(golden_either: Path, policy: Policy) -> None:
    """Calls of all shapes, in other orders, as if each were alone."""
    found = machine(golden_either, policy)
    pipeline, asked = found.pipeline(), calls(0)
    expected = [pipeline(**call) for call in asked]
    captures = found.device.asked["capture"]

    def work(offset: int) -> None:
        for i in (*range(offset, len(asked)), *range(offset)):
            np.testing.assert_array_equal(pipeline(**asked[i]), expected[i])

    in_threads(*(lambda offset=offset: work(offset) for offset in (0, 5, 10, 15)))
    assert found.device.asked["capture"] == captures
    pipeline.close()
    assert found.held == NOTHING


@pytest.mark.parametrize("policy", POLICIES)
def test_two_pipelines_on_one_device(golden_either: Path, policy: Policy) -> None:
    """Each with streams of its own, capturing while the other works."""
    device = WatchedDevice(policy)
    expected = [[machine(golden_either).pipeline()(**call) for call in calls(n)] for n in range(2)]
    pipelines = [machine(golden_either, device=device).pipeline() for _ in range(2)]

    def work(n: int) -> None:
        for _ in range(2):
            for call, images in zip(calls(n), expected[n], strict=True):
                np.testing.assert_array_equal(pipelines[n](**call), images)
        pipelines[n].close()

    in_threads(lambda: work(0), lambda: work(1))
    counters = device.counters
    assert (counters.live_bytes, counters.live_pinned, counters.live_streams) == (0, 0, 0)
    assert (counters.live_events, counters.live_graphs) == (0, 0)


def test_a_slow_reader_keeps_its_results(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may be read after later ones: until then nothing takes its place."""
    pipeline = machine(tiny_bundle, "eager").pipeline()
    expected = [latents(pipeline, [1], "E1", seeds=[n]) for n in range(4)]
    is_read, go, read = threading.Event(), threading.Event(), CudaRun.latents
    slow: list[int] = []

    def reading(run: CudaRun) -> Any:
        if threading.get_ident() in slow:
            is_read.set()
            assert go.wait(PATIENCE)
        return read(run)

    monkeypatch.setattr(CudaRun, "latents", reading)
    found: dict[int, Any] = {}

    def work(n: int) -> None:
        found[n] = latents(pipeline, [1], "E1", seeds=[n])

    def work_slowly() -> None:
        slow.append(threading.get_ident())
        work(0)

    first = threading.Thread(target=work_slowly, daemon=True)
    first.start()
    assert is_read.wait(PATIENCE)
    work(1)
    others = [threading.Thread(target=work, args=(n,), daemon=True) for n in (2, 3)]
    for thread in others:
        thread.start()
        thread.join(0.2)
    go.set()
    for thread in (first, *others):
        thread.join(PATIENCE)
    for n in range(4):
        np.testing.assert_array_equal(found[n], expected[n])


def test_a_pipeline_that_cannot_be_loaded(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives back what its backend held."""
    found = machine(tiny_bundle)

    def load(network: str, variant: str | None) -> None:
        raise BackendError(f"{network} cannot be loaded")

    monkeypatch.setattr(found.engines, "load", load)
    monkeypatch.setattr("flowturbo_trt.runtime.pipeline.load_backend", lambda *arguments: found.backend)
    with pytest.raises(BackendError, match="predictor cannot be loaded"):
        Pipeline.load(tiny_bundle)
    assert found.engines.closed
    assert found.held == NOTHING


PROBE = """
import importlib, json, sys
from pathlib import Path

for name in json.loads(sys.argv[2]):
    importlib.import_module(name)
from flowturbo_trt.tests.runtime.emulated_machines import machine

found = machine(Path(sys.argv[1]))
images = found.pipeline()([1, 2], schedule="H1P1R1", on_step=lambda step: step.preview())
heavy = ("torch", "onnx", "onnx_ir", "onnxscript", "diffusers", "safetensors")
print(json.dumps({"shape": images.shape, "loaded": [name for name in heavy if name in sys.modules]}))
"""


def test_no_torch(tiny_bundle: Path) -> None:
    """In a process that has imported every module of the runtime and run a pipeline on a GPU."""
    modules = [f"flowturbo_trt.runtime.{path.stem}" for path in sorted((ROOT / "runtime").glob("[a-z]*.py"))]
    assert "flowturbo_trt.runtime.cuda_driver" in modules
    probe = [sys.executable, "-c", PROBE, str(tiny_bundle), json.dumps(modules)]
    done = subprocess.run(probe, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"shape": [2, 8, 8, 3], "loaded": []}
