"""NumPy 1.26, which the Python of older Triton servers has: what differs from NumPy 2 and later."""

import subprocess
from pathlib import Path

import pytest

PYTHON = Path(__file__).resolve().parents[2] / ".venv" / "triton" / "bin" / "python"
TAKE_OVER = """
import numpy as np
from types import SimpleNamespace
from flowturbo_trt.runtime.dlpack import DeviceTensor

class HostTensor(DeviceTensor):
    device_type = 1

values = np.arange(6, dtype=np.float32).reshape(2, 3)
array = SimpleNamespace(shape=values.shape, dtype=values.dtype, address=values.ctypes.data)
tensor = HostTensor(SimpleNamespace(index=0), array, lambda: None)
tensor.__dlpack__(max_version=(1, 0))
taken = np.from_dlpack(tensor)
print(np.__version__.split(".")[0], taken.ctypes.data == array.address, np.array_equal(taken, values))
"""


def test_capsules(request: pytest.FixtureRequest) -> None:
    if not PYTHON.exists():
        if request.config.getoption("--serving"):
            pytest.fail(f"{PYTHON} is not there; make setup")
        pytest.skip(f"{PYTHON} is not there; make setup creates it")
    result = subprocess.run([PYTHON, "-c", TAKE_OVER], capture_output=True, text=True)
    assert result.stdout.split() == ["1", "True", "True"], result.stderr
