"""Backends on a GPU: which engines a trajectory gets, single calls, and failures that leave nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.device import DeviceError, OutOfMemoryError
from flowturbo_trt.tests.bundles import changed_copy
from flowturbo_trt.tests.emulated_kernels import needs_compiler
from flowturbo_trt.tests.runtime.emulated_machines import (
    NOTHING,
    Machine,
    WatchedDevice,
    fill,
    machine,
    program_of,
    run,
)

pytestmark = needs_compiler


@pytest.fixture
def emulated(golden_bundle: Path) -> Machine:
    return machine(golden_bundle)


def test_prepare_loads_what_a_program_needs(emulated: Machine, golden_fused_bundle: Path) -> None:
    """With conditioners and the decoder, and no variant beside."""
    emulated.backend.prepare(program_of("H1R1"))
    names = {("predictor", "guided"), ("refiner", "guided"), ("decoder", None)}
    conditioners = {("predictor_conditioner", None), ("refiner_conditioner", None)}
    assert set(emulated.engines.loaded) == names | conditioners
    fused = machine(golden_fused_bundle)
    fused.backend.prepare(program_of("H2", "unguided"))
    assert set(fused.engines.loaded) == {("predictor", "unguided"), ("decoder", None)}
    assert emulated.backend.device is emulated.device


@pytest.mark.parametrize("text", ["E1", "H1P5R3"])
def test_one_engine_for_all_calls_of_a_trajectory(emulated: Machine, text: str) -> None:
    """However many steps: contexts take memory, and time to make. Another trajectory has its own."""
    names: list[tuple[str, str | None, int]] = [
        ("predictor", "guided", 2),
        ("predictor_conditioner", None, 64),
        ("decoder", None, 2),
    ]
    if "R" in text:
        names += [("refiner", "guided", 2), ("refiner_conditioner", None, 64)]
    trajectory = emulated.bind(text)
    assert sorted(emulated.engines.made, key=str) == sorted(names, key=str)
    fill(trajectory)
    previews: list[Any] = []
    trajectory.start(decode=True, on_step=lambda mark, index: previews.append(trajectory.preview(index)))
    run(trajectory)
    assert len(emulated.engines.made) == len(names)
    emulated.bind(text)
    assert len(emulated.engines.made) == 2 * len(names)


def test_rows_of_conditioners(golden_bundle: Path) -> None:
    """As many as engines fix, or as a program has times and the batch rows."""
    for fixes_rows, rows in ((True, 64), (False, 3 * 2)):
        found = machine(golden_bundle, fixes_rows=fixes_rows)
        found.bind("E3")
        assert ("predictor_conditioner", None, rows) in found.engines.made


def attempts(device: WatchedDevice, act: Callable[[], object], held: Callable[[], Any]) -> int:
    """Let every request of an action fail in turn; return how many there are."""
    before, failures = held(), 0
    while True:
        device.fails_at = device.asked.total() + failures + 1
        try:
            act()
        except DeviceError:
            failures += 1
            assert held() == before
        else:
            return failures
        finally:
            device.fails_at = 0


def test_nothing_is_left_of_a_trajectory_that_cannot_be_bound(golden_either: Path) -> None:
    """Whichever request of the device fails; then it can."""
    found = machine(golden_either)
    bound = []
    failures = attempts(found.device, lambda: bound.append(found.bind("E1")), lambda: found.held)
    # Two places of two blocks on either side and four events, at least.
    assert failures > 16
    assert np.isfinite(run(bound[0])).all()
    bound[0].close()
    found.backend.close()
    assert found.held == NOTHING


@pytest.mark.parametrize("refused", ["predictor", "predictor_conditioner", "decoder"])
def test_nothing_is_left_without_an_engine(
    emulated: Machine, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    before, made = emulated.held, emulated.engines.engine

    def engine(network: str, variant: str | None, rows: int) -> object:
        if network == refused:
            raise BackendError(f"{network} cannot be loaded")
        return made(network, variant, rows)

    monkeypatch.setattr(emulated.engines, "engine", engine)
    with pytest.raises(BackendError, match=f"{refused} cannot be loaded"):
        emulated.bind("E1")
    assert emulated.held == before


def test_nothing_is_left_without_memory(emulated: Machine) -> None:
    """Whether the graph's buffers have no room, or one of the places beside it."""
    before = emulated.held
    emulated.bind("E1").close()
    needed = emulated.device.counters
    bound = emulated.bind("E1")
    whole = emulated.device.counters.live_bytes - needed.live_bytes
    bound.close()
    for share in (0, 0.3, 0.6, 0.9):
        emulated.device.memory_limit = needed.live_bytes + int(share * whole)
        with pytest.raises(OutOfMemoryError):
            emulated.bind("E1")
        assert emulated.held == before
    emulated.device.memory_limit = needed.live_bytes + whole
    run(emulated.bind("E1"))


def test_nothing_is_left_of_a_preview_that_cannot_be_made(emulated: Machine) -> None:
    trajectory = emulated.bind("E1")

    def look(mark: object, index: int) -> None:
        before = emulated.held
        # Once it is there it is kept, whatever fails.
        failures = attempts(
            emulated.device,
            lambda: previews.append(trajectory.preview(index)),
            lambda: emulated.held if trajectory._preview is None else before,
        )
        assert failures >= 2
        assert emulated.held[0] == before[0] + 1

    previews: list[Any] = []
    fill(trajectory)
    trajectory.start(decode=False, on_step=look)
    assert len(previews) == 1
    trajectory.close()
    emulated.backend.close()
    assert emulated.held == NOTHING


def test_nothing_is_left_of_a_preview_that_cannot_be_bound(
    emulated: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectory = emulated.bind("E1")
    run(trajectory)
    before = emulated.held

    class Refusing:
        def bind(self, inputs: Any, outputs: Any) -> None:
            raise BackendError("the decoder cannot be bound")

    monkeypatch.setattr(trajectory, "_decoder", Refusing())
    with pytest.raises(BackendError, match="cannot be bound"):
        trajectory.preview(0)
    assert emulated.held == before


@pytest.mark.parametrize("rows", [1, 2])
def test_single_calls(golden_either: Path, rows: int) -> None:
    """Equal to the session's own, in memory that is given back."""
    found = machine(golden_either)
    random, before = np.random.default_rng(1), found.held
    for engine in (e for e in found.bundle.manifest.engines if e.backend == "onnxruntime"):
        count = 64 if engine.is_conditioner else rows
        inputs: dict[str, Any] = {
            t.name: random.integers(0, 3, (count, *map(int, t.shape[1:]))).astype(t.dtype)
            for t in engine.inputs
        }
        found_array = found.backend.evaluate(engine.network, engine.variant, inputs)
        expected = found.engines.sessions.evaluate(engine.network, engine.variant, inputs)
        np.testing.assert_array_equal(found_array, expected)
        assert found_array.flags.owndata
    assert found.held == before


def test_single_calls_that_fail(emulated: Machine) -> None:
    before, state = emulated.held, {"state": np.zeros((2, 4, 8, 8), np.float32)}
    failures = attempts(
        emulated.device, lambda: emulated.backend.evaluate("decoder", None, state), lambda: emulated.held
    )
    assert failures >= 4
    emulated.engines.failing = "decoder"
    with pytest.raises(BackendError, match="decoder failed"):
        emulated.backend.evaluate("decoder", None, state)
    assert emulated.held == before


def test_close(emulated: Machine) -> None:
    trajectories = [emulated.bind("E1"), emulated.bind("H1R1", 1)]
    for trajectory in trajectories:
        run(trajectory)
        trajectory.close()
    emulated.backend.close()
    assert emulated.engines.closed
    assert emulated.held == NOTHING


def test_a_condition_without_a_null(golden_bundle: Path, tmp_path: Path) -> None:
    """Guided networks that are hoisted need one: that is said before anything is bound."""

    def forget(data: dict[str, Any]) -> None:
        data["model"]["conditions"][0]["null"] = None

    found = machine(golden_bundle)
    changed = machine(changed_copy(golden_bundle, tmp_path, forget))
    assert found.bind("E1").is_captured
    before = changed.held
    with pytest.raises(BundleError, match="which label stands for none"):
        changed.bind("E1")
    assert changed.held == before
