"""Opening a CUDA device: what is asked of the driver first, and what people are told where it cannot be."""

import ctypes.util
from typing import Any

import pytest

from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.cuda_driver import CudaDevice, open_device
from flowturbo_trt.tests.fake_cuda import FakeDriver, real

CUresult = real.CUresult


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


def test_opening_takes_the_primary_context(driver: FakeDriver) -> None:
    device = CudaDevice(1, driver, None)
    assert (device.index, device.name, device.capability) == (1, "Test GPU", (9, 0))
    names = [call[0] for call in driver.calls]
    assert names[:4] == ["cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet"]
    assert names[-1] == "cuDevicePrimaryCtxRetain"


@pytest.mark.parametrize(
    ("failures", "values", "complaint"),
    [
        (
            {"cuInit": RuntimeError("no\n libcuda.")},
            {},
            "GPU.*: cuInit: no libcuda; use --backend onnxruntime --device cpu",
        ),
        (
            {"cuInit": CUresult.CUDA_ERROR_NO_DEVICE},
            {},
            "GPU.*CUDA_ERROR_NO_DEVICE: what CUDA says.*cpu",
        ),
        (
            {},
            {"cuDriverGetVersion": (12080,)},
            r"made for CUDA 12\.8, the cuda-bindings here for CUDA 13",
        ),
        ({}, {"cuDeviceGetCount": (1,)}, "cuda:1 does not exist: there is only cuda:0"),
        (
            {"cuDevicePrimaryCtxRetain": CUresult.CUDA_ERROR_DEVICE_UNAVAILABLE},
            {},
            "cuDevicePrimaryCtxRetain: CUDA_ERROR_DEVICE_UNAVAILABLE.*another process has it",
        ),
    ],
)
def test_what_cannot_be_opened(
    driver: FakeDriver, failures: dict[str, Any], values: dict[str, Any], complaint: str
) -> None:
    driver.failures |= failures
    driver.values |= values
    with pytest.raises(BackendError, match=complaint):
        CudaDevice(1, driver, None)


def test_index_says_how_many_there_are(driver: FakeDriver) -> None:
    with pytest.raises(BackendError, match="cuda:2 does not exist: there are 2, cuda:0 to cuda:1"):
        CudaDevice(2, driver, None)


@pytest.mark.parametrize("text", ["cpu", "cuda:", "cuda:-1", "cuda:x", "CUDA"])
def test_unknown_devices(text: str) -> None:
    with pytest.raises(BackendError, match=f"unknown device '{text}'; expected cuda or cuda:N"):
        open_device(text)


@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="this machine has a driver")
def test_machine_without_a_driver() -> None:
    with pytest.raises(
        BackendError,
        match=r"cuda:3 needs an NVIDIA GPU and its driver.*; use --backend onnxruntime --device cpu",
    ):
        open_device("cuda:3")
