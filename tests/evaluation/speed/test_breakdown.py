"""A trajectory's stages, on the host and on an emulated GPU."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.speed.breakdown import Breakdown, breakdown
from flowturbo_trt.evaluation.speed.latency import Stability, Timing
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.tests.emulated_device import EmulatedDevice
from flowturbo_trt.tests.emulated_engines import EmulatedEngines, open_emulated

ROUNDS = Stability(at_least=2, at_most=2)


def test_shares_and_overhead_are_of_rounds() -> None:
    """A machine that is half as fast for a while changes neither."""
    slow = (1.0, 1.0, 2.0, 2.0, 2.0, 1.0)
    parts = {name: Timing(tuple(t * x for x in slow), Stability()) for name, t in (("p", 0.7), ("r", 0.2))}
    found = Breakdown(Timing(slow, Stability()), parts)
    assert found.shares == pytest.approx({"p": 0.7, "r": 0.2, "rest": 0.1})
    assert found.overhead == pytest.approx(1 / 0.9 - 1)
    assert found.overhead_interval == pytest.approx((1 / 0.9 - 1, 1 / 0.9 - 1))


class Counting:
    """A backend that counts the calls of engines taken from it."""

    def __init__(self, backend: OnnxRuntimeBackend) -> None:
        self.backend = backend
        self.bind, self.prepare, self.evaluate = backend.bind, backend.prepare, backend.evaluate
        self.calls: Counter[str] = Counter()
        self.rows: dict[str, int] = {}

    def engine(self, network: str, variant: str | None) -> "CountingEngine":
        return CountingEngine(self, network, variant)


@dataclass(frozen=True)
class CountingEngine:
    owner: Counting
    network: str
    variant: str | None

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Callable[[], None]:
        call = self.owner.backend.engine(self.network, self.variant).bind(inputs, outputs)

        name = f"{self.network} {self.variant or ''}".rstrip()
        self.owner.rows[name] = len(next(iter(inputs.values())))

        def counted() -> None:
            self.owner.calls[name] += 1
            call()

        return counted


class Opaque:
    """A backend whose engines cannot be had one by one."""

    def __init__(self, backend: OnnxRuntimeBackend) -> None:
        self.bind, self.prepare, self.evaluate = backend.bind, backend.prepare, backend.evaluate


def test_breakdown_calls_engines_as_often_as_the_program(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    backend = Counting(OnnxRuntimeBackend(bundle, 1))
    program = bundle.manifest.programs["H1P1R1"]["guided"]
    found = breakdown(backend, bundle.manifest, program, 3, ROUNDS, decode=True)
    assert found is not None
    conditioners = {"predictor_conditioner", "refiner_conditioner"}
    assert set(found.engines) == {"predictor", "refiner", "decoder"} | conditioners
    # A warm-up and two rounds; conditioners once in each, for all times of all rows.
    assert backend.calls == {
        "predictor guided": 3 * 3,
        "refiner guided": 3 * 2,
        "decoder": 3,
        **dict.fromkeys(conditioners, 3),
    }
    for network in ("predictor", "refiner"):
        assert backend.rows[f"{network}_conditioner"] == 3 * len(set(program.times(network)))
    assert backend.rows["predictor guided"] == 3
    assert breakdown(Opaque(backend.backend), bundle.manifest, program, 3, ROUNDS, decode=True) is None
    without = breakdown(backend, bundle.manifest, program, 3, ROUNDS, decode=False)
    assert without is not None
    assert set(without.engines) == {"predictor", "refiner"} | conditioners


@pytest.mark.parametrize("bundle", ["golden_bundle", "golden_fused_bundle"])
def test_breakdown_tells_the_variants_of_a_mixed_program_apart(
    bundle: str, request: pytest.FixtureRequest
) -> None:
    opened = Bundle.open(request.getfixturevalue(bundle))
    backend = Counting(OnnxRuntimeBackend(opened, 1))
    program = trace(Schedule.parse("H2R1:guided=0..0.5"), "guided")
    found = breakdown(backend, opened.manifest, program, 2, ROUNDS, decode=False)
    assert found is not None
    names = {"predictor guided", "predictor unguided", "refiner"}
    hoisted = bundle == "golden_bundle"
    assert set(found.engines) - names == (
        {"predictor_conditioner", "refiner_conditioner"} if hoisted else set()
    )
    assert set(found.engines) >= names
    evaluations = program.evaluations()
    for (network, variant), count in evaluations.items():
        assert backend.calls[f"{network} {variant}"] == 3 * count
    assert {variant for network, variant in evaluations if network == "refiner"} == {"unguided"}
    assert found.shares.keys() == {*found.engines, "rest"}


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
