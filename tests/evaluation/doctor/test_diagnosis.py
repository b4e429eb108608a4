"""Findings about made-up machines: each fault is told apart, and has its remedy."""

from dataclasses import replace

import pytest

from flowturbo_trt.evaluation.doctor.diagnosis import diagnose
from flowturbo_trt.evaluation.doctor.facts import HERE, TEMPORARY, Facts
from flowturbo_trt.evaluation.doctor.probes import Answer
from flowturbo_trt.tests.evaluation.doctor.machines import (
    BARE,
    FACTS,
    L4,
    NO_CUDA_LIBRARIES,
    REACHED,
    absent,
    compiling,
    found,
    machine,
    onnxruntime,
    with_gpu,
)

RTX = Answer(version="1.7.1", details={"builds": True, "bound": False})
ENTERPRISE = Answer(version="11.0", details={"builds": True, "bound": True})
CRASH = Answer(error="its process was killed by SIGSEGV")

MACHINES = {
    "usual": FACTS,
    "old python": machine(python=(3, 10, 2)),
    "no folders": machine(disks={HERE: None, TEMPORARY: None}),
    "silent": machine(memory_total=None, memory_available=None, instructions=()),
    "no torch": replace(FACTS, libraries={**FACTS.libraries, "torch": absent("torch")}, packages={}),
    "base install": replace(FACTS, libraries={**FACTS.libraries, **BARE}, packages={}),
    "nothing": Facts(
        machine(cxx=None).machine,
        packages={},
        minimums={},
        onnxruntimes=(),
        registries=absent("numpy"),
        onnxruntime=absent("onnxruntime"),
        cuda=absent("onnxruntime"),
        tensorrt=absent("onnxruntime"),
        cuda_packages=absent("numpy"),
        libraries={module: absent(module) for module in FACTS.libraries},
    ),
    "all crash": replace(
        FACTS,
        registries=CRASH,
        onnxruntime=CRASH,
        cuda=CRASH,
        tensorrt=CRASH,
        cuda_packages=CRASH,
        libraries=dict.fromkeys(FACTS.libraries, CRASH),
        compilers={},
        backends={},
    ),
    "compilers crash": replace(FACTS, compilers=dict.fromkeys(FACTS.compilers, CRASH)),
    "gpu": with_gpu(compilers=compiling(tensorrt_rtx=RTX, tensorrt=ENTERPRISE)),
    "gpu without cuda": with_gpu(onnxruntime(said=NO_CUDA_LIBRARIES)),
}


@pytest.mark.parametrize("name", MACHINES)
def test_every_problem_has_a_remedy(name: str) -> None:
    for finding in diagnose(MACHINES[name]).findings:
        assert finding.detail, finding
        assert finding.remedy or finding.status != "problem", finding
        assert "\n" not in finding.detail + finding.remedy


def test_usual_machine() -> None:
    diagnosis = diagnose(FACTS)
    assert diagnosis.builds == ("onnxruntime",)
    assert diagnosis.runs == {"onnxruntime": ("cpu",)}
    assert [finding for finding in diagnosis.findings if finding.status == "problem"] == []
    assert found(diagnosis, "on onnxruntime").detail == "cpu: fp32, fp16"
    assert found(diagnosis, "memory").detail == "20.0 GiB of 24.0 GiB available"
    gpu = found(diagnosis, "GPU")
    assert (gpu.status, gpu.remedy.startswith("only if a GPU is to be used")) == ("not needed", True)


def test_python_that_is_too_old() -> None:
    finding = found(MACHINES["old python"], "Python")
    assert (finding.status, finding.detail) == ("problem", "3.10.2, expected 3.11 or newer")


def test_no_torch() -> None:
    diagnosis = diagnose(MACHINES["no torch"])
    torch = found(diagnosis, "torch")
    assert (torch.status, torch.detail) == ("problem", "not installed")
    assert torch.remedy == "pip install 'flowturbo_trt[export]'"
    assert diagnosis.builds == ()
    assert "torch" in found(diagnosis, "for onnxruntime").detail
    assert diagnosis.runs == {"onnxruntime": ("cpu",)}


def test_base_install_has_no_problem() -> None:
    """Running needs nothing that `build` imports, so that its absence is one line."""
    diagnosis = diagnose(MACHINES["base install"])
    assert found(diagnosis, "libraries").status == "not needed"
    assert [finding for finding in diagnosis.findings if finding.status == "problem"] == []
    assert diagnosis.builds == ()


def test_library_that_is_too_old() -> None:
    finding = found(replace(FACTS, packages={"torch": "2.8.1"}), "torch")
    assert (finding.status, finding.detail) == ("problem", "2.8.1, expected 2.9 or newer")
    assert finding.remedy.endswith("--upgrade")
    assert found(replace(FACTS, packages={"torch": "2.10.0a0+git"}), "torch").status == "ok"


def test_library_that_crashes() -> None:
    finding = found(replace(FACTS, libraries={**FACTS.libraries, "torch": CRASH}), "torch")
    assert finding.detail == "2.13.0+cpu cannot be imported: its process was killed by SIGSEGV"
    assert finding.remedy == "pip install --force-reinstall torch"


def test_two_onnxruntimes() -> None:
    both = ("onnxruntime", "onnxruntime-gpu")
    packages = {"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.31.1"}
    finding = found(replace(FACTS, onnxruntimes=both, packages=packages), "onnxruntime")
    assert finding.status == "problem"
    assert "onnxruntime 1.30.0, onnxruntime-gpu 1.31.1" in finding.detail
    assert finding.remedy == ("pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu")


def test_onnxruntime_that_computes_nothing() -> None:
    diagnosis = diagnose(replace(FACTS, onnxruntime=onnxruntime()))
    assert found(diagnosis, "onnxruntime").status == "problem"
    assert diagnosis.runs == {}


def test_gpu_with_cuda_libraries() -> None:
    diagnosis = diagnose(with_gpu())
    assert found(diagnosis, "CUDA provider").detail == "starts on cuda:0"
    assert diagnosis.runs == {"onnxruntime": ("cpu", "cuda:0")}
    assert found(diagnosis, "GPU 0").detail == (
        "NVIDIA L4, compute capability 8.9, 23.0 GiB of 24.0 GiB free, driver 580.65.06"
    )


def test_gpu_without_cuda_libraries() -> None:
    diagnosis = diagnose(MACHINES["gpu without cuda"])
    finding = found(diagnosis, "CUDA provider")
    assert finding.status == "problem"
    assert finding.detail == (
        "does not start: libcublasLt.so.13: cannot open shared object file: No such file"
    )
    assert "CUDA 13.* and cuDNN 9.*" in finding.remedy
    assert diagnosis.runs == {"onnxruntime": ("cpu",)}


def test_gpu_and_an_onnxruntime_without_cuda() -> None:
    plain = onnxruntime("cpu", providers=("CPU",))
    none = onnxruntime(providers=("CPU",))
    finding = found(with_gpu(none, onnxruntime=plain, onnxruntimes=("onnxruntime",)), "CUDA provider")
    assert finding.status == "problem"
    assert finding.remedy == "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"


def test_provider_that_dies() -> None:
    finding = found(with_gpu(CRASH), "CUDA provider")
    assert (finding.status, finding.detail) == ("problem", f"does not start: {CRASH.error}")


def test_gpu_that_only_the_provider_sees() -> None:
    """Containers may have the driver without nvidia-smi."""
    facts = replace(FACTS, cuda=onnxruntime("cuda:0"), cuda_packages=REACHED)
    assert diagnose(facts).runs == {"onnxruntime": ("cpu", "cuda:0")}


@pytest.mark.parametrize(
    ("answer", "packages", "gpus", "status", "words"),
    [
        (absent("tensorrt"), {}, (), "not needed", "not installed"),
        (absent("tensorrt"), {"tensorrt": "11.0"}, (), "problem", "tensorrt 11.0 without working libraries"),
        (absent("tensorrt_libs"), {"tensorrt-cu13-bindings": "11.0"}, (), "problem", "tensorrt_libs"),
        (
            Answer(error="OSError: libnvinfer.so.11: cannot open shared object file"),
            {"tensorrt-cu13-bindings": "11.0"},
            (L4,),
            "problem",
            "libnvinfer",
        ),
        (ENTERPRISE, {"tensorrt": "11.0"}, (), "problem", "builds on the GPU that the engines are to run on"),
        (ENTERPRISE, {"tensorrt": "11.0"}, (L4,), "ok", "for the GPU of this machine"),
        (
            Answer(version="11.0", said="CUDA error 35", details={"builds": False, "bound": True}),
            {"tensorrt": "11.0"},
            (L4,),
            "problem",
            "cannot start: CUDA error 35",
        ),
    ],
)
def test_tensorrt(
    answer: Answer, packages: dict[str, str], gpus: tuple[object, ...], status: str, words: str
) -> None:
    facts = replace(machine(gpus=gpus), packages=packages, compilers=compiling(tensorrt=answer))
    finding = found(facts, "for tensorrt")
    assert finding.status == status
    assert words in finding.detail
    assert ("tensorrt" in diagnose(facts).builds) == (status == "ok")


def test_bindings_of_the_other_flavour_do_not_count() -> None:
    facts = replace(FACTS, packages={"tensorrt-rtx-cu13": "1.7"})
    assert found(facts, "for tensorrt").status == "not needed"
    assert found(facts, "for tensorrt-rtx").status == "problem"


def test_tensorrt_rtx_needs_no_gpu_and_the_libraries_of_build() -> None:
    facts = replace(FACTS, compilers=compiling(tensorrt_rtx=RTX))
    assert found(facts, "for tensorrt-rtx").detail == "tensorrt_rtx 1.7.1, builds engines without a GPU"
    assert diagnose(facts).builds == ("onnxruntime", "tensorrt-rtx")
    assert diagnose(replace(facts, libraries={**FACTS.libraries, **BARE}, packages={})).builds == ()


def test_nothing_works() -> None:
    for name in ("nothing", "all crash"):
        diagnosis = diagnose(MACHINES[name])
        assert (diagnosis.builds, dict(diagnosis.runs)) == ((), {})
        assert found(diagnosis, "numpy").status == "problem"
        assert found(diagnosis, "onnxruntime").status == "problem"
