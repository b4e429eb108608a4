"""Kernels that TensorRT for RTX compiled for one plan on one GPU, kept between processes.

Plans for RTX hold no machine code: it is made when a context first needs it, which takes seconds for a
large network. What is kept here only saves that time. So a folder that cannot be written and a file
that is damaged or of another machine are no errors: the kernels are compiled again.
"""

import ctypes
import hashlib
import sys
from dataclasses import astuple, dataclass
from typing import Any

from flowturbo_trt.runtime.kernel_cache import KernelCache


@dataclass(frozen=True)
class CacheKey:
    """Everything that compiled kernels depend on; `plan` is the sha256 of the plan's file."""

    plan: str
    module: str
    gpu: str
    capability: tuple[int, int]
    driver: str

    @property
    def file(self) -> str:
        parts = "\n".join(map(str, astuple(self)))
        return f"{self.plan[:12]}-{hashlib.sha256(parts.encode()).hexdigest()[:20]}.cache"


class TensorRtKernels:
    """An IRuntimeCache that remembers what was kept of it."""

    def __init__(self, kept: KernelCache, key: CacheKey, cache: Any) -> None:
        self.cache = cache
        self._kept = kept
        self._file = key.file
        self._saved = 0
        content = kept.read(self._file)
        # False for kernels of another version or GPU, which the key should exclude.
        if content is not None and cache.deserialize(content):
            self._saved = len(content)

    def save(self) -> bool:
        """Keep the kernels if there are more than were kept before, and tell whether that was done."""
        held = self.cache.serialize()
        if held is None:
            return False
        content = bytes(memoryview(held))
        if len(content) <= self._saved or not self._kept.write(self._file, content):
            return False
        self._saved = len(content)
        return True


def driver_version() -> str:
    """Return the CUDA version that the driver speaks, e.g. `13000`, or `none` without a driver."""
    version = ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "none"
    failed = driver.cuDriverGetVersion(ctypes.byref(version))
    return "none" if failed else str(version.value)
