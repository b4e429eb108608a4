"""Stages of a trajectory on a GPU, here an emulated one."""

from pathlib import Path

import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.speed.latency import Stability, breakdown
from flowturbo_trt.tests.emulated_device import EmulatedDevice
from flowturbo_trt.tests.emulated_engines import EmulatedEngines, open_emulated

ROUNDS = Stability(at_least=2, at_most=2)


@pytest.mark.parametrize("fixes_rows", [True, False])
def test_stages_are_the_engines_of_a_run(tiny_bundle: Path, fixes_rows: bool) -> None:
    bundle, device = Bundle.open(tiny_bundle), EmulatedDevice()
    backend = open_emulated(bundle, device, fixes_rows=fixes_rows)
    program = bundle.manifest.programs["H1P1R1"]["guided"]
    streams = device.counters.live_streams
    found = breakdown(backend, bundle.manifest, program, 3, ROUNDS, decode=True)
    assert found is not None
    conditioners = ("predictor_conditioner", "refiner_conditioner")
    assert set(found.engines) == {"predictor", "refiner", "decoder", *conditioners}
    assert len(found.whole.samples) == len(found.engines["decoder"].samples) == 2
    assert min(found.whole.samples) > 0
    left = device.counters
    assert (left.live_bytes, left.live_pinned, left.live_events, left.live_graphs) == (0, 0, 0, 0)
    assert left.live_streams == streams


def test_whole_runs_are_waited_for(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that has only been asked for costs nothing: what is timed has to be done."""
    bundle, device = Bundle.open(tiny_bundle), EmulatedDevice("lazy")
    backend = open_emulated(bundle, device)
    program = bundle.manifest.programs["H2"]["guided"]
    engines = backend._engines
    assert isinstance(engines, EmulatedEngines)
    decoded: list[int] = []
    synchronize = device.synchronize

    def watched(event: int) -> None:
        synchronize(event)
        decoded.append(engines.runs["decoder"])

    monkeypatch.setattr(device, "synchronize", watched)
    assert breakdown(backend, bundle.manifest, program, 1, ROUNDS, decode=True) is not None
    # In every run, a warm-up and two rounds, the last wait comes after its decoding.
    assert len({count for count in decoded if count}) >= 3
