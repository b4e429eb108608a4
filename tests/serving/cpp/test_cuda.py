"""What the C++ library runs on GPUs, on a device emulated in host memory; the kernel, as compiled.

The emulated device works when somebody waits for it, in the order in which it was asked, so that a wait that
is missing, an address that is stale or a buffer overwritten early gives another image.
"""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flowturbo_trt.benchmarks.cpp_builds import ROOT, SOURCE, Toolchain, exclusive

if TYPE_CHECKING:
    from flowturbo_trt.export.options import BuildOptions

KERNEL = SOURCE / "src" / "cuda" / "combine.cu"
GPUS = ("80", "90", "120")


@pytest.fixture(scope="module")
def emulated_cases(cpp_toolchain: Toolchain) -> Path:
    """The program that runs one case on a bundle, under sanitizers."""
    folder = ROOT / "build" / "cpp" / "emulated"
    with exclusive(folder):
        cpp_toolchain.build(
            SOURCE / "tests",
            folder,
            "-DCMAKE_BUILD_TYPE=Debug",
            "-DFLOWTURBO_SANITIZE=address,undefined",
            targets=("emulated_cases",),
        )
    return folder / "emulated_cases"


def run_case(program: Path, case: str, bundle: Path) -> None:
    done = subprocess.run((program, case, bundle), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "case",
    [
        "equality",
        "requests_in_turn",
        "programs_in_turn",
        "one_graph",
        "conditioner_rows",
        "failures",
        "memory",
        "targets",
        "sums",
    ],
)
def test_trajectories(emulated_cases: Path, tiny_bundle: Path, case: str) -> None:
    run_case(emulated_cases, case, tiny_bundle)


@pytest.mark.parametrize("case", ["equality", "requests_in_turn", "programs_in_turn"])
def test_both_halves(emulated_cases: Path, golden_bundle: Path, case: str) -> None:
    """The golden networks' velocities have two halves when guided, and one when not."""
    run_case(emulated_cases, case, golden_bundle)


def test_fused_conditioning(emulated_cases: Path, tiny_fused_bundle: Path) -> None:
    run_case(emulated_cases, "requests_in_turn", tiny_fused_bundle)


def test_no_decoder(emulated_cases: Path, tiny_options: "BuildOptions", tmp_path: Path) -> None:
    from flowturbo_trt.export.build import build

    bundle = build(replace(tiny_options, decoder=None), tmp_path / "bundle").path
    run_case(emulated_cases, "no_decoder", bundle)


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is missing: install NVIDIA's CUDA toolkit")
def test_kernel(tmp_path: Path) -> None:
    """It compiles without warnings for every GPU, and rounds products and sums apart."""
    for gpu in GPUS:
        nvcc("-cubin", f"-arch=sm_{gpu}", tmp_path / "kernel.cubin")
    nvcc("-ptx", f"-arch=compute_{GPUS[0]}", tmp_path / "kernel.ptx")
    code = (tmp_path / "kernel.ptx").read_text(encoding="utf-8")
    assert re.search(r"\bmul\.rn\.f32\b", code)
    assert re.search(r"\badd\.rn\.f32\b", code)
    assert not re.search(r"\bfma\.", code)


def nvcc(kind: str, architecture: str, out: Path) -> None:
    """Compile the kernel as the library's CMakeLists.txt does."""
    flags = ("-std=c++17", "--fmad=false", "-Werror", "all-warnings")
    done = subprocess.run(
        ("nvcc", *flags, kind, architecture, KERNEL, "-o", out), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
