"""Kernels are really compiled, for every GPU that NVRTC knows, and kept on disk."""

from pathlib import Path

import pytest

from flowturbo_trt.runtime import cuda_kernels
from flowturbo_trt.runtime.backend import BackendError, UnsupportedError
from flowturbo_trt.runtime.cuda_kernels import cached_kernels, compile_kernels
from flowturbo_trt.runtime.device import DeviceError
from flowturbo_trt.runtime.kernel_cache import KernelCache, cache_folder

nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
KERNEL = """
extern "C" __global__ void axpy(const float* __restrict__ c, const float* __restrict__ x, float* y) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = __fadd_rn(__fmul_rn(c[0], x[i]), y[i]);
}
"""


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Lists the capabilities that were compiled for."""
    capabilities = []

    def compile_one(source: str, capability: tuple[int, int]) -> bytes:
        capabilities.append(capability)
        return compile_kernels(source, capability)

    monkeypatch.setattr(cuda_kernels, "compile_kernels", compile_one)
    return capabilities


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_kernels_compile(capability: tuple[int, int]) -> None:
    known = nvrtc.nvrtcGetSupportedArchs()[1]
    if 10 * capability[0] + capability[1] not in known:
        pytest.skip(f"this NVRTC compiles for {known}")
    kernels = compile_kernels(KERNEL, capability)
    assert kernels[:4] == b"\x7fELF"
    assert b"axpy" in kernels
    assert f"sm_{capability[0]}{capability[1]}".encode() in kernels


def test_compiler_says_what_is_wrong() -> None:
    with pytest.raises(DeviceError, match=r'kernels\.cu\(\d\).*identifier "c0" is undefined') as caught:
        compile_kernels(
            KERNEL.replace("c[0]", "c0").replace("unsigned i", "\nunsigned i", 0).lstrip("\n"), (9, 0)
        )
    assert "\n" not in str(caught.value)


def test_unknown_gpus_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"capability 3\.5, only for .*9\.0.*; install the"):
        compile_kernels(KERNEL, (3, 5))


def test_missing_compiler_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("libnvrtc\n not found.")

    monkeypatch.setattr(nvrtc, "nvrtcGetSupportedArchs", fail)
    with pytest.raises(BackendError, match=r"libnvrtc not found; pip install '\S+\[tensorrt-rtx\]'"):
        compile_kernels(KERNEL, (9, 0))


def test_kernels_are_compiled_once(tmp_path: Path, compiled: list[tuple[int, int]]) -> None:
    folder = tmp_path / "a" / "b"
    kernels = [cached_kernels(KERNEL, (9, 0), KernelCache(folder)) for _ in range(2)]
    assert kernels[0] == kernels[1]
    assert compiled == [(9, 0)]
    assert [file.suffix for file in folder.iterdir()] == [".cubin"]


def test_another_gpu_source_or_compiler_is_compiled_for(
    tmp_path: Path, compiled: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = KernelCache(tmp_path)
    cached_kernels(KERNEL, (9, 0), cache)
    cached_kernels(KERNEL, (8, 9), cache)
    cached_kernels(KERNEL + "\n", (9, 0), cache)
    monkeypatch.setattr(nvrtc, "nvrtcVersion", lambda: (nvrtc.nvrtcResult.NVRTC_SUCCESS, 99, 1))
    cached_kernels(KERNEL, (9, 0), cache)
    assert compiled == [(9, 0), (8, 9), (9, 0), (9, 0)]


@pytest.mark.parametrize("damaged", [slice(0), slice(-1), slice(1, None)])
def test_damaged_files_are_compiled_anew(
    tmp_path: Path, compiled: list[tuple[int, int]], damaged: slice
) -> None:
    kernels = cached_kernels(KERNEL, (9, 0), KernelCache(tmp_path))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[damaged])
    assert cached_kernels(KERNEL, (9, 0), KernelCache(tmp_path)) == kernels
    assert file.read_bytes() == whole
    assert len(compiled) == 2


def test_no_cache_is_no_error(tmp_path: Path, compiled: list[tuple[int, int]]) -> None:
    (tmp_path / "file").touch()
    for folder in (None, tmp_path / "file" / "kernels"):
        for _ in range(2):
            assert cached_kernels(KERNEL, (9, 0), KernelCache(folder))[:4] == b"\x7fELF"
    assert len(compiled) == 4


def test_failed_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*names: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    assert not KernelCache(tmp_path).write("key", b"content")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "expected"),
    [("/somewhere", "/somewhere"), ("relative", "/home/someone/.cache"), ("", "/home/someone/.cache")],
)
def test_cache_folder(place: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", place)
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder("kernels") == Path(expected) / "flowturbo_trt" / "kernels"


def test_no_home_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    assert cache_folder("kernels") is None
