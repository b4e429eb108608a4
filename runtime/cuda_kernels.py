"""CUDA C++ compiled for one kind of GPU by NVRTC, which needs neither a GPU nor a driver."""

import hashlib
from typing import Any

from flowturbo_trt.runtime.backend import BackendError, UnsupportedError
from flowturbo_trt.runtime.cuda_errors import import_bindings, one_line
from flowturbo_trt.runtime.device import DeviceError
from flowturbo_trt.runtime.kernel_cache import KernelCache


def cached_kernels(source: str, capability: tuple[int, int], cache: KernelCache) -> bytes:
    """Return compiled kernels from the cache, or compile them and keep them there."""
    version = ".".join(map(str, _nvrtc("nvrtcVersion")))
    key = hashlib.sha256("\0".join((version, *_options(capability), source)).encode()).hexdigest()
    kernels = cache.read(f"{key}.cubin")
    if kernels is None:
        kernels = compile_kernels(source, capability)
        cache.write(f"{key}.cubin", kernels)
    return kernels


def compile_kernels(source: str, capability: tuple[int, int]) -> bytes:
    """Return the CUBIN of CUDA C++ for GPUs of a compute capability.

    Raises DeviceError with the compiler's log, UnsupportedError for a GPU it does not know.
    """
    major, minor = capability
    known = _nvrtc("nvrtcGetSupportedArchs")
    if 10 * major + minor not in known:
        version = ".".join(map(str, _nvrtc("nvrtcVersion")))
        raise UnsupportedError(
            f"NVRTC {version} cannot compile for compute capability {major}.{minor}, only for "
            f"{', '.join(f'{one // 10}.{one % 10}' for one in known)}; install the nvidia-cuda-nvrtc that "
            "knows this GPU"
        )
    program = _nvrtc("nvrtcCreateProgram", source.encode(), b"kernels.cu", 0, None, None)
    try:
        options = [option.encode() for option in _options(capability)]
        try:
            _nvrtc("nvrtcCompileProgram", program, len(options), options)
        except DeviceError as error:
            log = bytearray(_nvrtc("nvrtcGetProgramLogSize", program))
            _nvrtc("nvrtcGetProgramLog", program, log)
            said = " ".join(log.rstrip(b"\0").decode(errors="replace").split())
            raise DeviceError(f"the kernels do not compile: {said or error}") from error
        kernels = bytearray(_nvrtc("nvrtcGetCUBINSize", program))
        _nvrtc("nvrtcGetCUBIN", program, kernels)
        return bytes(kernels)
    finally:
        _nvrtc("nvrtcDestroyProgram", program)


def _options(capability: tuple[int, int]) -> tuple[str, ...]:
    major, minor = capability
    return (f"--gpu-architecture=sm_{major}{minor}",)


def _nvrtc(name: str, *arguments: Any) -> Any:
    """Return what a function of NVRTC returns beside its code; raises DeviceError."""
    nvrtc = import_bindings("nvrtc")
    try:
        result, *values = getattr(nvrtc, name)(*arguments)
    except RuntimeError as error:
        raise BackendError(
            f"NVRTC, which compiles the kernels, is not there: {one_line(error)}; pip install "
            "'flowturbo_trt[tensorrt-rtx]' or 'flowturbo_trt[cuda]'"
        ) from error
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise DeviceError(f"{name}: {result.name}")
    return values[0] if len(values) == 1 else tuple(values) or None
