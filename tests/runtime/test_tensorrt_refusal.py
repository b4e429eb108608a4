"""Plans that TensorRT refuses, and calls that fail: what the error says, and what to do."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import BackendError, UnsupportedError
from flowturbo_trt.runtime.device import OutOfMemoryError
from flowturbo_trt.runtime.tensorrt_engine import open_runtime
from flowturbo_trt.tests.emulated_device import EmulatedDevice
from flowturbo_trt.tests.fake_tensorrt import SCRATCH
from flowturbo_trt.tests.runtime.tensorrt_machines import Machine, MakeMachine, arguments, machine_maker

RTX, ENTERPRISE = "tensorrt-rtx", "tensorrt"


@pytest.fixture
def make_machine(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeMachine:
    return machine_maker(tiny_bundle, tmp_path, monkeypatch)


@pytest.mark.parametrize("backend", [RTX, ENTERPRISE])
def test_module_that_is_missing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_that_is_missing", None)
    expected = rf"^backend {backend} is not installed \(.*\); pip install 'flowturbo_trt\[{backend}\]'$"
    with pytest.raises(BackendError, match=expected):
        open_runtime("tensorrt_that_is_missing", backend)


def test_module_without_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The placeholder of the enterprise flavour fails with whatever error."""

    def fail(name: str) -> None:
        raise RuntimeError("no libnvinfer.so.11")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(BackendError, match=r"^backend tensorrt is not installed \(no libnvinfer.so.11\)"):
        open_runtime("tensorrt", ENTERPRISE)


@pytest.mark.parametrize("backend", [RTX, ENTERPRISE])
def test_runtime_that_does_not_start(make_machine: MakeMachine, backend: str) -> None:
    machine = make_machine(backend)
    machine.module.refusals["Runtime"] = "CUDA initialization\nfailure with error: 35"
    expected = r"does not start \(CUDA initialization failure with error: 35\); it needs an NVIDIA GPU and "
    with pytest.raises(BackendError, match=rf"^{backend}: tensorrt.* {expected}driver: .* --backend onnx"):
        machine.open()


NO_DRIVER = "Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient for CUDA)"
FULL = "Requested amount of GPU memory (123456 bytes) could not be allocated. (cudaError 2: out of memory)"
CANNOT = r"^refiner guided: {backend} cannot load engines/{backend}/refiner.guided.fp16.plan: "


@pytest.mark.parametrize(
    ("backend", "reason", "problems", "entries", "error", "message"),
    [
        (
            RTX,
            NO_DRIVER,
            (),
            {},
            UnsupportedError,
            r"it needs an NVIDIA GPU with a driver that is new enough",
        ),
        (
            ENTERPRISE,
            NO_DRIVER,
            (),
            {},
            UnsupportedError,
            r"it needs .* for tensorrt 11.0.0 \(Error Code 1: ",
        ),
        (RTX, "?", {"OLD_CUDA_DRIVER"}, {}, UnsupportedError, r"it needs .*; install the latest driver, or"),
        (RTX, "?", {"CUDA_ERROR"}, {}, UnsupportedError, r"it needs .* --backend onnxruntime$"),
        (RTX, FULL, (), {}, OutOfMemoryError, r"it asks for 123456 bytes of GPU memory, and \d+ of \d+ are"),
        (
            RTX,
            "?",
            {"INSUFFICIENT_GPU_MEMORY", "UNSUPPORTED_CC"},
            {},
            OutOfMemoryError,
            r"it asks for at least \d+ bytes of GPU memory, and 1073741824 of 1073741824 are free on "
            r"emulated GPU; end what else uses it, or load fewer batch sizes and variants$",
        ),
        (
            RTX,
            "header",
            (),
            {"builder": "tensorrt_rtx 1.6.0"},
            BackendError,
            r"it was built with tensorrt_rtx 1.6.0, and tensorrt_rtx 1.7.1 is installed \(header\); install "
            r"that version, or rebuild it with --backend tensorrt-rtx$",
        ),
        (
            ENTERPRISE,
            "header",
            (),
            {"builder": "tensorrt 10.9 for emulated GPU, 580.1"},
            BackendError,
            r"it was built with tensorrt 10.9, and tensorrt 11.0.0 is installed",
        ),
        (
            ENTERPRISE,
            "no kernel image",
            (),
            {"builder": "tensorrt 11.0.0 for NVIDIA A10, 580.1"},
            UnsupportedError,
            r"it was built on NVIDIA A10, and this is emulated GPU \(no kernel image\); rebuild it here$",
        ),
        (
            RTX,
            "?",
            (),
            {},
            UnsupportedError,
            r"it was compiled for compute capability 8.6 or 8.9 or 12.0, and emulated GPU has 9.0 \(\?\); "
            r"rebuild it with --target 9.0, or for another backend$",
        ),
        (RTX, "?", {"UNSUPPORTED_CC"}, {"targets": ["sm90"]}, UnsupportedError, r".* capability 9.0, and "),
        (RTX, "?", (), {"targets": ["sm89", "12.0"]}, UnsupportedError, r".* 8.9 or 12.0, and .* has 9.0"),
        (RTX, "odd", (), {"targets": ["9.0"]}, BackendError, r"odd; rebuild it with --backend tensorrt-rtx$"),
        (ENTERPRISE, "odd", (), {}, BackendError, r"odd; rebuild it with --backend tensorrt$"),
    ],
)
def test_plan_that_is_refused(
    make_machine: MakeMachine,
    backend: str,
    reason: str,
    problems: Any,
    entries: dict[str, Any],
    error: type[BackendError],
    message: str,
) -> None:
    machine = make_machine(backend, **entries)
    machine.module.refusals["deserialize_cuda_engine"] = reason
    machine.module.problems = set(problems)
    with pytest.raises(BackendError, match=CANNOT.format(backend=backend) + message) as raised:
        machine.load()
    assert type(raised.value) is error
    assert "\n" not in str(raised.value)


def test_portable_plan_on_a_supported_gpu(make_machine: MakeMachine) -> None:
    machine = make_machine(RTX, device=EmulatedDevice(capability=(8, 9)))
    machine.module.refusals["deserialize_cuda_engine"] = "odd"
    with pytest.raises(BackendError, match=r": odd; rebuild it with"):
        machine.load()


@pytest.mark.parametrize("backend", [RTX, ENTERPRISE])
def test_file_that_is_no_plan(make_machine: MakeMachine, backend: str) -> None:
    """One line, of what TensorRT says in two; not what it said of the plan before."""
    machine = make_machine(
        backend,
        lambda plan: plan if plan.name != "refiner guided" else b"no plan",
        device=EmulatedDevice(capability=(8, 6)),
    )
    machine.load("predictor")
    with pytest.raises(BackendError, match=rf"the plan cannot be read; rebuild it with --backend {backend}$"):
        machine.load()


CALLS = {
    "create_runtime_config": "makes no runtime configuration",
    "create_execution_context": "cannot make a context for batch 1",
    "set_runtime_cache": "refuses its own kernel cache",
    "set_optimization_profile_async": "cannot select the profile of batch 1",
    "set_input_shape": r"refuses state of shape \[1, 2, 4, 4\]",
    "set_tensor_address": r"refuses 0x\w+ as the address of \w+",
    "execute_async_v3": "cannot run it",
}


def run(machine: Machine, refused: str, reason: str) -> None:
    """Load, and do everything up to a call, of which TensorRT refuses one thing."""
    if refused == "create_runtime_config":
        machine.module.refusals[refused] = reason
    engine, stream = machine.load(), machine.device.create_stream()
    machine.module.refusals[refused] = reason
    context = engine.context(1, machine.scratch(SCRATCH), stream)
    inputs = {name: machine.put(array) for name, array in arguments(engine, 1).items()}
    output = machine.put(np.zeros((1, 1, 2, 4, 4), np.float32))
    context.bind(inputs, {"offset": output})(stream)


@pytest.mark.parametrize("refused", CALLS)
def test_call_that_is_refused(make_machine: MakeMachine, refused: str) -> None:
    expected = (
        rf"^refiner guided: tensorrt-rtx {CALLS[refused]}: something odd; rebuild the bundle if it stays"
    )
    with pytest.raises(BackendError, match=expected):
        run(make_machine(RTX), refused, "something\n odd")


@pytest.mark.parametrize("refused", ["create_execution_context", "execute_async_v3"])
def test_call_without_memory(make_machine: MakeMachine, refused: str) -> None:
    machine = make_machine(ENTERPRISE, device=EmulatedDevice(memory_limit=100_000))
    with pytest.raises(
        OutOfMemoryError, match=rf"{CALLS[refused]}: it asks for 7 bytes .* of 100000 are free"
    ):
        run(machine, refused, "Requested amount of GPU memory (7 bytes) could not be allocated.")


def test_reason_is_not_an_earlier_one(make_machine: MakeMachine) -> None:
    machine = make_machine(ENTERPRISE, device=EmulatedDevice(capability=(8, 6)))
    runtime = machine.open()
    runtime.log.log(machine.module.ILogger.Severity.ERROR, "earlier")
    runtime.log.log(machine.module.ILogger.Severity.WARNING, "a warning")
    assert runtime.log.last() == "earlier"
    bundle = Bundle.open(machine.bundle)
    engine = bundle.manifest.engine("refiner", "guided", ENTERPRISE)
    loaded = runtime.load(bundle, engine, machine.device)
    assert "fails: it gave no reason; rebuild" in str(loaded.failure("fails"))
