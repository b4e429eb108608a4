"""What goes wrong with TensorRT behind a pipeline: one line that says what to do, and nothing left."""

from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import BackendError, UnsupportedError, load_backend
from flowturbo_trt.runtime.device import DeviceError, OutOfMemoryError
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.tests.emulated_kernels import needs_compiler
from flowturbo_trt.tests.runtime.emulated_machines import NOTHING, WatchedDevice, program_of, run
from flowturbo_trt.tests.runtime.tensorrt_machines import FLAVOURS, MakeMachine, machine_maker
from flowturbo_trt.tests.runtime.test_backend_tensorrt import Opened

pytestmark = needs_compiler
OUT_OF_MEMORY = "Requested amount of GPU memory (123456 bytes) could not be allocated"


@pytest.fixture
def make_machine(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeMachine:
    return machine_maker(tiny_bundle, tmp_path, monkeypatch)


@pytest.fixture(params=FLAVOURS)
def opened(request: pytest.FixtureRequest, make_machine: MakeMachine) -> Opened:
    return Opened(make_machine(request.param, device=WatchedDevice()))


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    return text


def test_a_context_without_memory(opened: Opened) -> None:
    before = opened.held
    opened.module.refusals["create_execution_context"] = OUT_OF_MEMORY
    with pytest.raises(OutOfMemoryError) as caught:
        opened.backend.bind(program_of("H1R1"), 3)
    message = one_line(caught.value)
    assert message.startswith("predictor guided: ")
    assert "123456 bytes of GPU memory" in message
    assert message.endswith("end what else uses it, or load fewer batch sizes and variants")
    opened.module.refusals.clear()
    # Of the failed attempt there is the scratch memory, which the next one takes over.
    assert opened.held[0] == before[0] + 1
    run(opened.backend.bind(program_of("H1R1"), 3))
    assert len(opened.engines._scratch) == 2


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_a_device_without_memory(opened: Opened, share: float) -> None:
    """Wherever it runs out: nothing is left, and with more of it the same pipeline works."""
    bound = opened.backend.bind(program_of("H1R1"), 3)
    whole = opened.device.counters.live_bytes
    bound.close()
    before = opened.held
    opened.device.memory_limit = before[1] + int(share * (whole - before[1]))
    with pytest.raises(OutOfMemoryError):
        opened.backend.bind(program_of("H1R1"), 3)
    assert opened.held == before
    opened.device.memory_limit = whole
    trajectory = opened.backend.bind(program_of("H1R1"), 3)
    run(trajectory)
    trajectory.close()
    opened.backend.close()
    assert opened.held == NOTHING


def test_whichever_request_fails(opened: Opened) -> None:
    failures = 0
    while True:
        opened.device.fails_at = opened.device.asked.total() + failures + 1
        try:
            trajectory = opened.backend.bind(program_of("E1"), 1)
        except DeviceError:
            opened.device.fails_at = 0
            failures += 1
            # Nothing but scratch memory, which belongs to all.
            scratch = len(opened.engines._scratch)
            assert (opened.held[0], opened.held[2:]) == (scratch, (0, 3, 0, 0))
        else:
            opened.device.fails_at = 0
            break
    assert failures > 16
    run(trajectory)
    trajectory.close()
    opened.backend.close()
    assert opened.held == NOTHING


@pytest.mark.parametrize("call", ["execute_async_v3", "set_tensor_address"])
def test_a_call_that_fails(opened: Opened, call: str) -> None:
    """In the warm-up or afterwards: it is said which engine's, with the reason; then it works again."""
    trajectory = opened.backend.bind(program_of("H1R1"), 1)
    opened.module.refusals[call] = "an internal\nerror"
    with pytest.raises(BackendError, match=r"^predictor_conditioner: tensorrt.* an internal error; rebuild"):
        run(trajectory)
    opened.module.refusals.clear()
    run(trajectory)
    assert trajectory.is_captured
    trajectory.close()
    opened.backend.close()
    assert opened.held == NOTHING


WRONG: list[tuple[dict[str, Any], set[str], type[BackendError], str]] = [
    ({"builder": "tensorrt_rtx 1.2.0"}, set(), BackendError, "built with tensorrt_rtx 1.2.0, and .* 1.7.1"),
    ({"targets": ["8.9"]}, {"UNSUPPORTED_CC"}, UnsupportedError, "capability 8.9, and emulated GPU has 9.0"),
]


@pytest.mark.parametrize(("options", "problems", "error", "message"), WRONG)
def test_plans_of_another_machine(
    make_machine: MakeMachine,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    problems: set[str],
    error: type[BackendError],
    message: str,
) -> None:
    """Another version, another GPU: loading the pipeline says so, and gives back what it held."""
    made = make_machine("tensorrt-rtx", device=WatchedDevice(), **options)
    made.module.problems |= problems
    if problems:
        made.module.refusals["deserialize_cuda_engine"] = "incompatible"
    opened = Opened(made)
    monkeypatch.setattr("flowturbo_trt.runtime.pipeline.load_backend", lambda *arguments: opened.backend)
    with pytest.raises(error, match=message) as caught:
        Pipeline.load(made.bundle, backend="tensorrt-rtx")
    assert "rebuild it" in one_line(caught.value)
    assert opened.held == NOTHING


@pytest.mark.parametrize("backend", FLAVOURS)
def test_without_a_driver(tiny_bundle: Path, backend: str) -> None:
    """As on this machine: the packages may be there, a GPU is not."""
    driver = pytest.importorskip("cuda.bindings.driver")
    try:
        has_driver = driver.cuInit(0)[0] == driver.CUresult.CUDA_SUCCESS
    except RuntimeError:
        has_driver = False
    if has_driver:
        pytest.skip("there is a driver")
    with pytest.raises(BackendError) as caught:
        load_backend(backend, Bundle.open(tiny_bundle), None, 0)
    message = one_line(caught.value)
    installed = r"needs an NVIDIA GPU"
    assert installed in message or f"pip install 'flowturbo_trt[{backend}]'" in message
    # The CPU is no device of this backend.
    assert not message.endswith("use --device cpu")
