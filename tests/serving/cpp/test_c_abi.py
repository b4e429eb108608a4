"""flowturbo.h as other languages use it: plain C compiles it, and nothing but statuses comes out of it."""

import ctypes
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.benchmarks.cpp_builds import SOURCE
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.tests.serving.cpp.library import STATUSES, Library, LibraryError, LoadOptions, Request

C_PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
#include "flowturbo/flowturbo.h"

int main(int count, char** arguments) {
  flowturbo_pipeline* pipeline = NULL;
  flowturbo_info info;
  const int64_t labels[] = {2, 0};
  flowturbo_request request = {2, labels, NULL, NULL, 0, NULL};
  flowturbo_status status = flowturbo_load(arguments[count - 1], NULL, &pipeline);
  if (status != FLOWTURBO_OK) {
    printf("%d %s", (int)status, flowturbo_last_error());
    return 1;
  }
  flowturbo_get_info(pipeline, &info);
  size_t size = request.count * info.image_height * info.image_width * 3;
  uint8_t* pixels = malloc(size);
  status = flowturbo_generate(pipeline, &request, pixels, size);
  fwrite(pixels, 1, size, stdout);
  free(pixels);
  flowturbo_close(pipeline);
  return (int)status;
}
"""


@pytest.fixture(scope="session")
def c_program(cpp_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("c")
    (folder / "main.c").write_text(C_PROGRAM)
    options = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{SOURCE / 'include'}"]
    linking = [f"-L{cpp_build}", "-lflowturbo", f"-Wl,-rpath,{cpp_build}"]
    command = ["cc", *options, folder / "main.c", *linking, "-o", folder / "main"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "main"


def test_program_in_c(c_program: Path, tiny_bundle: Path) -> None:
    done = subprocess.run([c_program, tiny_bundle], capture_output=True, check=True)
    expected = Pipeline.load(tiny_bundle, threads=1)([2, 0])
    apart = np.abs(np.frombuffer(done.stdout, dtype=np.uint8).reshape(expected.shape) - expected.astype(int))
    assert apart.max() <= 1


def test_program_in_c_is_told_why(c_program: Path, tmp_path: Path) -> None:
    done = subprocess.run([c_program, tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stdout[:2]) == (1, "1 ")
    assert "no bundle here (manifest.json not found)" in done.stdout


def test_info(cpp_library: Library, tiny_bundle: Path) -> None:
    model = Pipeline.load(tiny_bundle, threads=1).manifest.model
    with cpp_library.load(tiny_bundle) as pipeline:
        info = pipeline.info
        assert pipeline.schedules == ["H1P1R1", "H2"]
        assert pipeline.backend == "onnxruntime"
    assert (info.latent_channels, info.latent_height, info.latent_width) == model.latent
    assert (info.image_height, info.image_width) == model.image
    assert (info.label_minimum, info.label_maximum) == (0, 2)
    assert info.default_guidance == model.guidance.default == 2


def test_names_past_the_last(cpp_library: Library, tiny_bundle: Path) -> None:
    with cpp_library.load(tiny_bundle) as pipeline:
        assert cpp_library.functions.flowturbo_schedule(pipeline.handle, 2) is None
    assert cpp_library.functions.flowturbo_schedule(None, 0) is None
    assert cpp_library.functions.flowturbo_backend(None) is None
    cpp_library.functions.flowturbo_close(None)


@pytest.mark.parametrize("function", ["flowturbo_generate", "flowturbo_generate_latents"])
def test_too_little_room_is_not_overrun(cpp_library: Library, tiny_bundle: Path, function: str) -> None:
    with cpp_library.load(tiny_bundle) as pipeline:
        info = pipeline.info
        row = info.image_height * info.image_width * 3
        if function == "flowturbo_generate_latents":
            row = info.latent_channels * info.latent_height * info.latent_width
        out = np.full(3 * row, 7, dtype=np.uint8 if function == "flowturbo_generate" else np.float32)
        with pytest.raises(
            LibraryError, match=f"^request: room for {2 * row - 1} .*, expected {row} for each of 2"
        ):
            pipeline.run(function, [0, 1], out, 2 * row - 1)
        assert np.all(out == 7)
        pipeline.run(function, [0, 1], out, 2 * row)
        assert np.all(out[2 * row :] == 7)
        assert not np.all(out[: 2 * row] == 7)


def test_null_pointers(cpp_library: Library, tiny_bundle: Path) -> None:
    functions = cpp_library.functions
    handle, request, room = ctypes.c_void_p(), Request(), np.zeros(4, dtype=np.uint8)
    null = ctypes.c_void_p()
    path = str(tiny_bundle).encode()
    with cpp_library.load(tiny_bundle) as pipeline:
        calls = {
            "bundle": functions.flowturbo_load(None, None, ctypes.byref(handle)),
            "pipeline": functions.flowturbo_load(path, None, null),
            "info": functions.flowturbo_get_info(pipeline.handle, null),
            "request": functions.flowturbo_generate(pipeline.handle, null, room.ctypes, 4),
            "pixels": functions.flowturbo_generate(pipeline.handle, ctypes.byref(request), null, 4),
            "latents": functions.flowturbo_generate_latents(pipeline.handle, ctypes.byref(request), null, 4),
        }
    assert {STATUSES[status] for status in calls.values()} == {"request"}
    assert not handle


def test_options_may_be_null_or_empty(cpp_library: Library, tiny_bundle: Path) -> None:
    path, empty = str(tiny_bundle).encode(), LoadOptions(b"", b"", 0)
    for options in (None, ctypes.byref(empty)):
        handle = ctypes.c_void_p()
        cpp_library.check(cpp_library.functions.flowturbo_load(path, options, ctypes.byref(handle)))
        assert cpp_library.functions.flowturbo_backend(handle) == b"onnxruntime"
        cpp_library.functions.flowturbo_close(handle)


def test_every_thread_has_an_error_of_its_own(cpp_library: Library, tmp_path: Path) -> None:
    def load(name: str) -> str:
        with pytest.raises(LibraryError) as caught, cpp_library.load(tmp_path / name):
            pass
        return str(caught.value)

    names = [f"bundle{number}" for number in range(40)]
    with ThreadPoolExecutor(4) as threads:
        for name, message in zip(names, threads.map(load, names), strict=True):
            assert f"/{name}: no bundle here" in message


@pytest.mark.skipif(sys.platform != "linux", reason="nm lists the symbols of Linux' libraries")
def test_nothing_but_the_interface_is_visible(cpp_build: Path) -> None:
    command = ["nm", "--dynamic", "--defined-only", "--demangle", cpp_build / "libflowturbo.so"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {line.split(" ", 2)[2] for line in listed.splitlines() if " T " in line}
    header = (SOURCE / "include" / "flowturbo" / "flowturbo.h").read_text()
    functions = {name for name in names if name.startswith("flowturbo_")}
    assert functions == set(map(c_name, header.split("FLOWTURBO_API")[1:]))
    assert all(name.startswith("flowturbo::Pipeline::") for name in names - functions)


def c_name(declaration: str) -> str:
    return declaration.split("(")[0].split()[-1].lstrip("*")
