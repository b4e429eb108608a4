"""What a failure of CUDA is told as."""

import sys

import pytest

from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.cuda_errors import _REMEDIES, CheckedDriver, import_bindings
from flowturbo_trt.runtime.device import CaptureError, DeviceError, OutOfMemoryError
from flowturbo_trt.tests.fake_cuda import FakeDriver, real

CUresult = real.CUresult


def test_every_remedy_is_for_an_error_of_cuda() -> None:
    assert set(_REMEDIES) <= {result.name for result in CUresult}


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("CUDA_ERROR_INVALID_VALUE", DeviceError, "cuX: CUDA_ERROR_INVALID_VALUE: what CUDA says"),
        ("CUDA_ERROR_NO_BINARY_FOR_GPU", DeviceError, "compiled for another GPU"),
        ("CUDA_ERROR_ILLEGAL_ADDRESS", DeviceError, "nothing can run on it in this process any more"),
        ("CUDA_ERROR_OUT_OF_MEMORY", OutOfMemoryError, "use a smaller batch"),
        ("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", CaptureError, "cuX: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"),
        ("CUDA_ERROR_CAPTURED_EVENT", CaptureError, "cuX: CUDA_ERROR_CAPTURED_EVENT"),
    ],
)
def test_codes_have_their_errors(code: str, kind: type[DeviceError], message: str) -> None:
    driver = FakeDriver()
    driver.failures["cuX"] = getattr(CUresult, code)
    with pytest.raises(DeviceError, match=message) as caught:
        CheckedDriver(driver)("cuX", 1)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_values_come_without_their_code() -> None:
    driver = FakeDriver()
    driver.values |= {"cuOne": (5,), "cuTwo": (5, 6)}
    cuda = CheckedDriver(driver)
    assert (cuda("cuNone"), cuda("cuOne"), cuda("cuTwo")) == (None, 5, (5, 6))


def test_codes_without_a_name_keep_their_number() -> None:
    driver = FakeDriver()
    driver.failures |= dict.fromkeys(
        ("cuX", "cuGetErrorName", "cuGetErrorString"), CUresult.CUDA_ERROR_INVALID_VALUE
    )
    with pytest.raises(DeviceError, match="cuX: error 1: error 1"):
        CheckedDriver(driver)("cuX")


def test_missing_bindings_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendError, match=r"pip install '\S+\[tensorrt-rtx\]' or '\S+\[cuda\]'"):
        import_bindings("driver")
