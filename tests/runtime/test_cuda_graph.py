"""Graphs over a trajectory's buffers: what is captured when, what cannot be, and what is left of it all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.cuda_graph import WARM_UPS, Part, TrajectoryGraphs
from flowturbo_trt.runtime.device import CaptureError, DeviceError, OutOfMemoryError
from flowturbo_trt.tests.emulated_kernels import needs_compiler
from flowturbo_trt.tests.runtime.emulated_machines import (
    NOTHING,
    Machine,
    WatchedDevice,
    machine,
    program_of,
)

pytestmark = needs_compiler
NETWORKS = {"predictor": 3, "refiner": 2, "predictor_conditioner": 1, "refiner_conditioner": 1}
STEPS: list[Part] = [0, 1, 2, "decoding"]


def graphs_of(found: Machine, text: str = "H1P1R1", batch: int = 2) -> TrajectoryGraphs:
    manifest, engines, program = found.bundle.manifest, found.engines, program_of(text)
    conditionings = found.backend.conditionings(program, batch)
    return TrajectoryGraphs(
        program,
        batch,
        manifest,
        conditionings,
        found.backend._streams,
        lambda network, variant: engines.engine(network, variant, 64 if "cond" in network else batch),
        must_capture=engines.must_capture,
    )


@pytest.fixture
def emulated(golden_bundle: Path) -> Machine:
    return machine(golden_bundle)


def wait(found: Machine) -> None:
    found.device.synchronize_stream(found.backend._streams.compute)


def test_parts(emulated: Machine) -> None:
    """Each is captured once, when it is prepared; a launch of it is one, of all that is in it."""
    graphs, device = graphs_of(emulated), emulated.device
    contents: list[tuple[Part, dict[str, int]]] = [
        ("latents", NETWORKS),
        ("images", NETWORKS | {"decoder": 1}),
        (0, {"predictor": 2, "predictor_conditioner": 1, "refiner_conditioner": 1}),
        (1, {"predictor": 1}),
        (2, {"refiner": 2}),
        ("decoding", {"decoder": 1}),
    ]
    for captures, (part, runs) in enumerate(contents):
        assert device.asked["capture"] == captures
        for _ in range(2):
            graphs.prepare([part])
        assert device.asked["capture"] == device.counters.live_graphs == captures + 1
        assert emulated.engines.counted() == {name: WARM_UPS * count for name, count in runs.items()}
        for _ in range(2):
            launches = device.counters.launches
            graphs.launch(part)
            wait(emulated)
            assert emulated.engines.counted() == runs
            assert device.counters.launches == launches
    assert device.counters.graph_launches == 2 * len(contents)
    assert graphs.is_captured
    graphs.close()
    emulated.backend.close()
    assert emulated.held == NOTHING


def test_preparing_several(emulated: Machine) -> None:
    graphs = graphs_of(emulated)
    graphs.prepare(["latents"])
    graphs.prepare([*STEPS, "latents"])
    assert emulated.device.asked["capture"] == 5
    graphs.close()


def test_null_conditioning(emulated: Machine) -> None:
    """Launched by itself, for the label that stands for none; no part of the graphs."""
    graphs = graphs_of(emulated)
    for network in ("predictor", "refiner"):
        label = emulated.device.array(graphs.memory.array(f"{network}.null_label"))
        np.testing.assert_array_equal(label, np.full(64, 10))
        assert np.isnan(emulated.device.array(graphs.memory.array(f"{network}.null_modulation"))).all()
    graphs.launch_null_conditioning()
    wait(emulated)
    assert emulated.engines.counted() == {"predictor_conditioner null": 1, "refiner_conditioner null": 1}
    for network in ("predictor", "refiner"):
        found = emulated.device.array(graphs.memory.array(f"{network}.null_modulation"))
        assert np.isfinite(found).all()
    graphs.close()


def test_an_engine_that_cannot_be_captured_is_named(emulated: Machine) -> None:
    """Once it has run: before, engines may still have to compile."""
    graphs, engines = graphs_of(emulated), emulated.engines
    engines.uncapturable = "refiner"
    graphs.prepare([0, 1, "decoding"])
    with pytest.raises(CaptureError, match=r"refiner guided: .* cannot become part of a graph") as caught:
        graphs.prepare(["latents"])
    assert "\n" not in str(caught.value)
    assert engines.runs["refiner"] == WARM_UPS * 2
    assert emulated.device.asked["capture"] == 3
    engines.uncapturable = ""
    graphs.prepare(["latents"])
    graphs.close()
    emulated.backend.close()
    assert emulated.held == NOTHING


FAULTS = ["waiting", "uncapturable"]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_must_be_captured(golden_bundle: Path, fault: str) -> None:
    found = machine(golden_bundle)
    setattr(found.engines, fault, "refiner")
    graphs = graphs_of(found)
    with pytest.raises(BackendError, match="refiner"):
        graphs.prepare(["images"])
    assert graphs.is_captured
    assert found.device.counters.live_graphs == 0
    graphs.close()
    found.backend.close()
    assert found.held == NOTHING


@pytest.mark.parametrize("fault", FAULTS)
def test_what_need_not_be_captured(golden_bundle: Path, fault: str) -> None:
    """Is launched piece by piece where that is all there is, says so, and gives the same."""
    outputs = []
    for faulty in (True, False):
        found = machine(golden_bundle, must_capture=False)
        setattr(found.engines, fault, "refiner" * faulty)
        graphs = graphs_of(found)
        assert graphs.is_captured
        graphs.prepare(["latents", "decoding"])
        assert graphs.is_captured is not faulty
        assert found.device.counters.live_graphs == 2 - faulty
        found.engines.counted()
        graphs.launch_null_conditioning()
        launched = found.device.counters.graph_launches
        graphs.launch("latents")
        wait(found)
        assert found.device.counters.graph_launches - launched == 1 - faulty
        assert found.engines.counted() == NETWORKS | {
            "predictor_conditioner null": 1,
            "refiner_conditioner null": 1,
        }
        state = graphs.memory.array(f"register{graphs.plan.output}")
        outputs.append(found.device.array(state).copy())
        # Not tried again and again.
        tries = found.device.asked["capture"]
        graphs.prepare(["latents", "decoding"])
        assert found.device.asked["capture"] == tries
        graphs.close()
    np.testing.assert_array_equal(outputs[0], outputs[1])


@pytest.mark.parametrize("must_capture", [True, False])
def test_an_engine_that_fails_in_the_warm_up(golden_bundle: Path, must_capture: bool) -> None:
    """Is an error whether or not graphs are needed, and no graph is left."""
    found = machine(golden_bundle, must_capture=must_capture)
    graphs = graphs_of(found)
    found.engines.failing = "refiner"
    with pytest.raises(BackendError, match="refiner failed"):
        graphs.prepare(["latents"])
    assert graphs.is_captured
    assert found.device.asked["capture"] == 0
    found.engines.failing = ""
    graphs.prepare(["latents"])
    assert found.device.counters.live_graphs == 1
    graphs.close()
    found.backend.close()
    assert found.held == NOTHING


def test_work_that_fails_on_the_device(emulated: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows where the warm-up waits."""
    graphs = graphs_of(emulated)

    def fail(*_: Any) -> None:
        raise DeviceError("illegal address")

    monkeypatch.setattr(emulated.engines.sessions, "engine", fail)
    with pytest.raises(DeviceError, match="illegal address"):
        graphs.prepare(["latents"])
    monkeypatch.undo()
    wait(emulated)
    graphs.prepare(["latents"])
    graphs.close()
    emulated.backend.close()
    assert emulated.held == NOTHING


def failing(device: WatchedDevice, found: Machine, text: str) -> Callable[[int], TrajectoryGraphs]:
    def make(fails_at: int) -> TrajectoryGraphs:
        device.fails_at = device.asked.total() + fails_at
        try:
            return graphs_of(found, text)
        finally:
            device.fails_at = 0

    return make


def test_nothing_is_left_of_what_cannot_be_made(golden_either: Path) -> None:
    """Whichever request fails."""
    found = machine(golden_either)
    before, make = found.held, failing(found.device, found, "E1")
    failures = 0
    while True:
        try:
            graphs = make(failures + 1)
        except DeviceError:
            failures += 1
            assert found.held == before
        else:
            break
    # At least: memory, its zeros, kernels.
    assert failures >= 3
    graphs.close()
    assert found.held == before


def test_an_engine_that_cannot_be_bound(emulated: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = emulated.held

    def refuse(network: str, variant: str | None, rows: int) -> None:
        raise BackendError(f"{network} refuses")

    monkeypatch.setattr(emulated.engines, "engine", refuse)
    with pytest.raises(BackendError, match="refuses"):
        graphs_of(emulated)
    assert emulated.held == before


def test_no_memory(emulated: Machine) -> None:
    before = emulated.held
    emulated.device.memory_limit = 1000
    with pytest.raises(OutOfMemoryError):
        graphs_of(emulated)
    assert emulated.held == before
