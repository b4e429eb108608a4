"""Two runs under way on one trajectory, and what fails in the middle of one."""

from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.cuda_trajectory import PLACES
from flowturbo_trt.runtime.device import DeviceError
from flowturbo_trt.tests.emulated_kernels import needs_compiler
from flowturbo_trt.tests.emulated_streams import POLICIES, Policy
from flowturbo_trt.tests.runtime.emulated_machines import NOTHING, fill, machine, program_of, run

pytestmark = needs_compiler
SEEDS = range(6)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_runs_under_way_are_not_mixed_up(golden_either: Path, policy: Policy, order: tuple[int, int]) -> None:
    """Whichever is read first; and the next is prepared, of another schedule, before they are."""
    trajectory, alone = machine(golden_either, policy).bind("H1R1"), machine(golden_either).bind("H1R1")
    texts = ("H1R1", "H1R1@0,0.8,1")
    expected = {}
    for seed in SEEDS:
        for text in texts:
            alone.set_program(program_of(text))
            expected[seed, text] = run(alone, seed)
    for first in SEEDS[::2]:
        runs = []
        for n in range(PLACES):
            trajectory.set_program(program_of(texts[n]))
            fill(trajectory, first + n)
            runs.append(trajectory.start(decode=True))
        # Inputs of a third, which nothing under way may read.
        trajectory.set_program(program_of(texts[0]))
        fill(trajectory, 99)
        for n in order:
            np.testing.assert_array_equal(runs[n].latents(), expected[first + n, texts[n]])
        for n in reversed(order):
            np.testing.assert_array_equal(runs[n].latents(), expected[first + n, texts[n]])
            assert runs[n].images().shape == (2, 16, 16, 3)


def test_the_next_upload_does_not_wait_for_the_graph(golden_either: Path) -> None:
    """Nor does asking for it: a request is on the device before the one before it has begun."""
    found = machine(golden_either, "lazy")
    trajectory, device = found.bind("H1R1"), found.device
    run(trajectory)
    run(trajectory)
    found.engines.counted()
    fill(trajectory, 1)
    trajectory.start(decode=False)
    fill(trajectory, 2)
    noise = trajectory.inputs.noise.copy()
    place = trajectory._places[trajectory._next]
    trajectory.start(decode=False)
    assert found.engines.counted() == {}
    device.synchronize(place.uploaded)
    assert found.engines.counted() == {}
    staged = device.array(place.inputs.device.arrays[f"register{trajectory._graphs.plan.noise}"])
    np.testing.assert_array_equal(staged, noise)


def test_results_are_not_waited_for_by_the_next_graph(golden_either: Path) -> None:
    """The second run is over while the first's results are still on their way to the host."""
    found = machine(golden_either, "lazy")
    trajectory, device = found.bind("H1R1"), found.device
    expected = [run(trajectory, seed) for seed in (1, 2)]
    runs, places = [], []
    for seed in (1, 2):
        fill(trajectory, seed)
        places.append(trajectory._places[trajectory._next])
        places[-1].results.host.memory[...] = 0
        runs.append(trajectory.start(decode=False))
    device.synchronize(places[1].given)
    for place in places:
        assert not place.results.host.memory.any()
    for one, latents in zip(runs, expected, strict=True):
        np.testing.assert_array_equal(one.latents(), latents)


@pytest.mark.parametrize("policy", POLICIES)
def test_unread_runs(golden_either: Path, policy: Policy) -> None:
    """Results that nobody wants are overwritten in their order."""
    found = machine(golden_either, policy)
    trajectory, alone = found.bind("H1R1"), machine(golden_either).bind("H1R1")
    for seed in range(5):
        fill(trajectory, seed)
        last = trajectory.start(decode=False)
    np.testing.assert_array_equal(last.latents(), run(alone, 4))
    fill(trajectory)
    trajectory.start(decode=True)
    trajectory.close()
    found.backend.close()
    assert found.held == NOTHING


def test_a_place_is_taken_when_its_run_lets_go(golden_either: Path) -> None:
    """Even of runs that nobody reads: their inputs stay until taken over, their results until copied."""
    found = machine(golden_either, "lazy")
    trajectory, device = found.bind("H1R1"), found.device
    expected = run(trajectory, 1)
    run(trajectory)
    place = trajectory._places[trajectory._next]
    place.results.host.memory[...] = 0
    for seed in (1, 2, 3):
        fill(trajectory, seed)
        if seed == 1:
            noise = trajectory.inputs.noise.copy()
        trajectory.start(decode=False)
    device.synchronize(place.uploaded)
    taken = trajectory._graphs.memory.array(f"register{trajectory._graphs.plan.noise}")
    np.testing.assert_array_equal(device.array(taken), noise)
    device.synchronize(place.given)
    np.testing.assert_array_equal(place.results.host.arrays["latents"], expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_after_any_failure_the_next_run_is_right(golden_either: Path, policy: Policy) -> None:
    """Whichever request of the device fails, in a run that captures and in one that does not."""
    found = machine(golden_either, policy)
    device, alone = found.device, machine(golden_either).bind("H1R1")
    texts = ("H1R1", "H1R1@0,0.8,1")
    expected = {}
    for text in texts:
        alone.set_program(program_of(text))
        expected[text] = run(alone, 1)
    for is_captured in (False, True):
        trajectory, failures = found.bind("H1R1"), 0
        if is_captured:
            run(trajectory)
        while True:
            trajectory.set_program(program_of(texts[failures % 2]))
            device.fails_at = device.asked.total() + failures + 1
            try:
                found_latents = run(trajectory, 2)
            except DeviceError:
                failures += 1
            else:
                device.fails_at = 0
                break
            device.fails_at = 0
            if is_captured:
                for text in texts:
                    trajectory.set_program(program_of(text))
                    np.testing.assert_array_equal(run(trajectory, 1), expected[text])
            else:
                # A trajectory that has captured does not do so again.
                trajectory.close()
                trajectory = found.bind("H1R1")
        assert np.isfinite(found_latents).all()
        assert failures > 10
        trajectory.close()
    found.backend.close()
    assert found.held == NOTHING


def test_null_modulations_after_a_failure(golden_bundle: Path) -> None:
    """They are not taken for those of times they were never computed for."""
    found, text = machine(golden_bundle), "H1P1R1@0,0.2,0.5,1"
    trajectory = found.bind("H1P1R1")
    run(trajectory)
    trajectory.set_program(program_of(text))
    found.engines.failing = "refiner_conditioner"
    with pytest.raises(BackendError, match="refiner_conditioner failed"):
        run(trajectory)
    found.engines.failing = ""
    np.testing.assert_array_equal(run(trajectory), run(machine(golden_bundle).bind(text)))
