"""The real tensorrt_rtx: it has what the fakes have, and without a driver it says so on one line."""

import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import UnsupportedError
from flowturbo_trt.runtime.tensorrt_cache import driver_version
from flowturbo_trt.runtime.tensorrt_engine import open_runtime
from flowturbo_trt.tests import fake_tensorrt as fakes
from flowturbo_trt.tests import fake_tensorrt_enums as enums
from flowturbo_trt.tests.emulated_device import EmulatedDevice

trt = pytest.importorskip("tensorrt_rtx")

CLASSES = {
    "ILogger": fakes.ILogger,
    "Runtime": fakes.RtxRuntime,
    "ICudaEngine": fakes.ICudaEngine,
    "EngineInspector": fakes.EngineInspector,
    "IRuntimeConfig": fakes.RtxRuntimeConfig,
    "IRuntimeCache": fakes.IRuntimeCache,
    "IExecutionContext": fakes.RtxExecutionContext,
}
ENUMS = [e for e in vars(enums).values() if isinstance(e, type) and issubclass(e, Enum) and e.__members__]


def attributes(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield what a fake has of TensorRT's: not its own helpers."""
    for name, value in inspect.getmembers(cls):
        if not name.startswith("_") and "no method of TensorRT's" not in (inspect.getdoc(value) or ""):
            yield name, value


def parameters(documentation: str) -> list[list[str]]:
    """Return the parameters' names of every overload that the bindings document, without `self`."""
    signatures = re.findall(r"\(self: ([^\n]*)\) -> ", documentation)
    return [re.findall(r", (\w+): ", signature) for signature in signatures]


@pytest.mark.parametrize(
    ("cls", "name", "fake"),
    [(cls, name, value) for cls, fake in CLASSES.items() for name, value in attributes(fake)],
)
def test_class_has_what_its_fake_has(cls: str, name: str, fake: Any) -> None:
    real = getattr(getattr(trt, cls), name)
    if inspect.isfunction(fake) and cls != "ILogger":
        expected = list(inspect.signature(fake).parameters)[1:]
        assert expected in parameters(real.__doc__)


def test_every_class_is_compared() -> None:
    """One that the fakes gain would otherwise not be."""
    own = {
        value
        for value in vars(fakes).values()
        if isinstance(value, type) and value.__module__ == fakes.__name__
    }
    assert own - {fakes.FakeTensorRt, fakes.Bound} == {
        c for fake in CLASSES.values() for c in fake.__mro__
    } & own - {fakes.Bound}


@pytest.mark.parametrize("fake", ENUMS)
def test_enumeration_has_the_members_of_its_fake(fake: type[Enum]) -> None:
    real = getattr(trt, fake.__name__).__members__
    assert fake.__members__.keys() <= real.keys()
    if fake is enums.EngineInvalidityDiagnostics:
        # These are bits, and TensorRT's numbers.
        assert {name: int(bit) for name, bit in real.items()} == {
            b.name: int(b) for b in enums.EngineInvalidityDiagnostics
        }


def test_types_of_tensors_are_known_by_their_names() -> None:
    assert {
        name: np.dtype(trt.nptype(getattr(trt.DataType, t.name))).name for name, t in enums.DATA_TYPES.items()
    } == {name: name for name in enums.DATA_TYPES}


@pytest.mark.skipif(driver_version() != "none", reason="this machine has a driver")
@pytest.mark.parametrize("network", ["predictor", "refiner", "decoder"])
def test_without_a_driver(golden_bundle: Path, network: str, capfd: pytest.CaptureFixture[str]) -> None:
    bundle = Bundle.open(golden_bundle)
    engine = bundle.manifest.engine(network, None if network == "decoder" else "guided", "tensorrt-rtx")
    runtime = open_runtime("tensorrt_rtx", "tensorrt-rtx")
    with pytest.raises(UnsupportedError) as raised:
        runtime.load(bundle, engine, EmulatedDevice())
    message = str(raised.value)
    assert message.startswith(
        f"{engine.name}: tensorrt-rtx cannot load {engine.file}: it needs an NVIDIA GPU with a driver"
    )
    assert f"new enough for {engine.builder} (" in message
    assert "driver version is insufficient" in message
    assert message.endswith("; install the latest driver, or use --backend onnxruntime")
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")
