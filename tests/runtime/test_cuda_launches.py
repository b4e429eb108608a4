"""What a trajectory asks of a GPU: which engines and kernels, on which arrays, in which order."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend_onnxruntime import NAME
from flowturbo_trt.runtime.buffers import plan_layout, register_name
from flowturbo_trt.runtime.conditioning import plan_conditioning
from flowturbo_trt.runtime.cuda_launches import EngineCall, Launch, Launches, bind_launches
from flowturbo_trt.runtime.cuda_memory import Streams, TrajectoryMemory
from flowturbo_trt.runtime.device import DeviceArray
from flowturbo_trt.runtime.launch_plan import Call, fuse, plan_launches
from flowturbo_trt.tests.emulated_kernels import needs_compiler
from flowturbo_trt.tests.runtime.emulated_machines import WatchedDevice, program_of

BATCH = 2
Arrays = Mapping[str, DeviceArray]


class Bound:
    """Binds the launches of a program; `calls` lists engines with the arrays they were bound to."""

    def __init__(self, path: Path, text: str, *, pads: bool = True) -> None:
        manifest = Bundle.open(path).manifest
        self.program, self.device = program_of(text), WatchedDevice()
        self.plan = plan_launches(self.program)
        self.conditionings = plan_conditioning(manifest, self.program, BATCH, NAME, pads=pads)
        layout = plan_layout(self.plan, BATCH, manifest.model, self.conditionings)
        self.streams = Streams.on(self.device)
        self.memory = TrajectoryMemory(layout, self.streams)
        self.calls: list[tuple[str, Arrays, Arrays]] = []
        self.launches: Launches = bind_launches(
            self.program,
            self.plan,
            manifest.model,
            BATCH,
            self.conditionings,
            self.device,
            self.memory.array,
            lambda network, variant: FakeEngine(self, f"{network}/{variant}"),
        )


class FakeEngine:
    def __init__(self, bound: Bound, name: str) -> None:
        self.bound, self.name = bound, name

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[int], None]:
        self.bound.calls.append((self.name, inputs, outputs))
        return lambda stream: None

    def is_capturable(self, stream: int) -> bool:
        return True


def asked(launches: tuple[Launch, ...]) -> list[str]:
    """Return what launches ask for: engines by name, kernels as `sums`."""
    return [launch.name if isinstance(launch, EngineCall) else "sums" for launch in launches]


def test_order_of_hoisted_networks(golden_bundle: Path) -> None:
    """H: evaluate, sum, evaluate, sum; conditioners before, of each network; the decoder after."""
    found = Bound(golden_bundle, "H1P1R1").launches
    assert asked(found.conditioning) == ["predictor_conditioner", "refiner_conditioner"]
    assert asked(found.null) == ["predictor_conditioner", "refiner_conditioner"]
    assert asked(found.decoding) == ["decoder"]
    heun = ["predictor guided", "sums", "predictor guided", "sums"]
    pseudo = ["sums", "predictor guided", "sums"]
    refiner = ["refiner guided", "sums", "refiner guided", "sums"]
    assert [asked(step) for step in found.steps] == [heun, pseudo, refiner]
    # As a whole, the sums that end a step and begin the next are one launch.
    assert asked(found.whole) == [*heun, *pseudo[1:], *refiner]


@pytest.mark.parametrize("text", ["H1P5R3", "E2", "AB2x4", "H1P2R1:guided=0..0.4"])
def test_one_launch_between_evaluations(golden_either: Path, text: str) -> None:
    bound = Bound(golden_either, text)
    whole = asked(bound.launches.whole)
    assert ("sums", "sums") not in pairwise(whole)
    evaluations = [f"{call.network} {call.variant}" for call in bound.plan.calls]
    assert [name for name in whole if name != "sums"] == evaluations
    steps = [name for step in bound.launches.steps for name in asked(step)]
    assert [name for name in steps if name != "sums"] == evaluations


def test_fused_networks_have_no_conditioning(golden_fused_bundle: Path) -> None:
    launches = Bound(golden_fused_bundle, "H1R1").launches
    assert (launches.null, launches.conditioning) == ((), ())


def test_null_conditioning_is_of_guided_networks(golden_bundle: Path) -> None:
    """Inside a guidance interval that the refiner lies outside of, the predictor is the only one."""
    bound = Bound(golden_bundle, "H2R1:guided=0..0.5")
    assert asked(bound.launches.null) == ["predictor_conditioner"]
    assert asked(bound.launches.conditioning) == ["predictor_conditioner", "refiner_conditioner"]
    unguided = Bound(golden_bundle, "E2:guided=0.9..1")
    assert unguided.launches.null == ()


def test_rows_of_conditioner_calls(golden_bundle: Path) -> None:
    """In chunks of as many rows as engines are built for, or all at once."""
    long = "E40"
    chunks = [arrays for name, arrays, _ in Bound(golden_bundle, long).calls if "conditioner" in name]
    assert [array.shape for arrays in chunks for array in arrays.values()] == [(64,)] * 8
    whole = [arrays for name, arrays, _ in Bound(golden_bundle, long, pads=False).calls if "conditio" in name]
    assert [array.shape for arrays in whole for array in arrays.values()] == [(80,)] * 4


def test_engines_are_bound_once_for_every_evaluation(golden_either: Path) -> None:
    """The same calls serve the whole and the steps."""
    bound = Bound(golden_either, "H1P2R1")
    names = [name for name, *_ in bound.calls]
    assert names.count("predictor/guided") == 4
    assert names.count("refiner/guided") == 2
    assert names.count("decoder/None") == 1
    calls = [launch for launch in bound.launches.whole if isinstance(launch, EngineCall)]
    steps = [launch for step in bound.launches.steps for launch in step if isinstance(launch, EngineCall)]
    assert [id(call) for call in calls] == [id(call) for call in steps]


@needs_compiler
def test_kernels_get_their_coefficients_and_buffers(
    golden_either: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row of their first coefficient, then the buffers they use."""
    bound = Bound(golden_either, "H1P1")
    launched: list[tuple[int, ...]] = []
    monkeypatch.setattr(bound.device, "launch", lambda *arguments: launched.append(arguments[3]))
    for launch in bound.launches.whole:
        launch(bound.streams.compute)
    coefficients, row_bytes = bound.memory.array("coefficients").address, 4 * BATCH
    fusions = [f for f in fuse(bound.program, bound.plan, range(2)) if not isinstance(f, Call)]
    assert len(launched) == len(fusions) > 2
    for (first, *addresses), fusion in zip(launched, fusions, strict=True):
        assert first == coefficients + fusion.sums[0].terms[0][0] * row_bytes
        slots = {slot for found in fusion.sums for slot in (found.out, *(s for _, s in found.terms))}
        assert sorted(addresses) == sorted(bound.memory.array(register_name(slot)).address for slot in slots)


@needs_compiler
def test_kernels_are_loaded_once(golden_bundle: Path) -> None:
    """All of a trajectory's together."""
    assert Bound(golden_bundle, "H1P5R3").device.asked["load_kernels"] == 1
