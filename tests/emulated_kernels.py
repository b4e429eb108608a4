"""Kernels of the emulated device: CUDA C++ compiled for the host, run thread by thread."""

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from flowturbo_trt.runtime.device import DeviceError

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

# No contraction, as the kernels themselves ask for with __fmul_rn and __fadd_rn.
_COMMAND = ("g++", "-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared")
_PRELUDE = """
#include <cmath>
#include <utility>
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
namespace emulation { struct Index { unsigned x, y, z; }; }
static thread_local emulation::Index gridDim, blockDim, blockIdx, threadIdx;
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }

namespace emulation {
template <typename... P, std::size_t... I>
static void call(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
    kernel(static_cast<P>(arguments[I])...);
}

template <typename... P>
static void run(void (*kernel)(P...), void** arguments, unsigned gx, unsigned gy, unsigned threads) {
    gridDim = {gx, gy, 1};
    blockDim = {threads, 1, 1};
    for (unsigned y = 0; y < gy; y++)
        for (unsigned x = 0; x < gx; x++)
            for (unsigned t = 0; t < threads; t++) {
                blockIdx = {x, y, 0};
                threadIdx = {t, 0, 0};
                call(kernel, arguments, std::index_sequence_for<P...>{});
            }
}

template <typename... P>
static unsigned count(void (*)(P...)) { return sizeof...(P); }
}
#line 1 "kernels.cu"
"""
_LAUNCHER = """
extern "C" void run_{name}(void** arguments, unsigned gx, unsigned gy, unsigned threads) {{
    emulation::run({name}, arguments, gx, gy, threads);
}}
extern "C" unsigned count_{name}() {{ return emulation::count({name}); }}
"""


class HostKernel:
    """One kernel, all of whose parameters are pointers."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.name = name
        self._parameters: int = library[f"count_{name}"]()
        self._run = library[f"run_{name}"]

    def check(self, blocks: tuple[int, int], threads: int, arguments: Sequence[int]) -> None:
        """Raise DeviceError for a launch that CUDA would refuse, or misunderstand."""
        if not (1 <= threads <= 1024 and 1 <= blocks[0] < 2**31 and 1 <= blocks[1] < 2**16):
            raise DeviceError(f"{self.name}: no GPU runs {blocks} blocks of {threads} threads")
        if len(arguments) != self._parameters:
            raise DeviceError(f"{self.name}: {len(arguments)} arguments, it takes {self._parameters}")

    def __call__(self, blocks: tuple[int, int], threads: int, arguments: Sequence[int]) -> None:
        self._run((ctypes.c_void_p * len(arguments))(*arguments), *blocks, threads)


@functools.cache
def compile_for_host(source: str, names: tuple[str, ...]) -> dict[str, HostKernel]:
    """Compile CUDA C++ for the host and return its kernels by name; raises DeviceError."""
    whole = _PRELUDE + source + "".join(_LAUNCHER.format(name=name) for name in names)
    file = Path(_folder().name) / f"{hashlib.sha256(whole.encode()).hexdigest()}.cpp"
    library = file.with_suffix(".so")
    file.write_text(whole)
    result = subprocess.run([*_COMMAND, "-o", library, file], capture_output=True, text=True)
    if result.returncode:
        raise DeviceError(f"the kernels do not compile: {result.stderr}")
    loaded = ctypes.CDLL(str(library))
    return {name: HostKernel(loaded, name) for name in names}


@functools.cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="kernels-")
