"""Findings about what a GPU takes: ONNX Runtime's providers, CUDA's packages, TensorRT."""

from dataclasses import replace
from typing import Any

import pytest

from flowturbo_trt.evaluation.doctor.diagnosis import diagnose
from flowturbo_trt.evaluation.doctor.facts import Facts
from flowturbo_trt.evaluation.doctor.probes import Answer, ask
from flowturbo_trt.tests.evaluation.doctor.machines import (
    FACTS,
    absent,
    found,
    onnxruntime,
    with_gpu,
)

PLANS = {"onnxruntime": Answer(), "tensorrt-rtx": Answer(version="1.7.1"), "tensorrt": absent("tensorrt")}
NO_BINDINGS = "device cuda needs cuda-bindings, which cannot be imported (no module); pip install it"
NO_NVRTC = "NVRTC, which compiles the kernels, is not there: Failure finding libnvrtc.so; pip install it"
NO_TENSORRT = "[E] FAIL : Failed to load library x.so with error: libnvinfer.so.10: cannot open shared object"


def cuda(lacking: dict[str, str] | None = None, **devices: str) -> Answer:
    """Return what the child told that tried CUDA's packages on `cuda_0`, `cuda_1`, …"""
    named = {name.replace("_", ":"): error for name, error in devices.items()}
    return Answer(details={"lacking": lacking or {}, "devices": named})


def gpu(answer: Answer, **changes: Any) -> Facts:
    return with_gpu(cuda_packages=answer, backends=PLANS, **changes)


def test_all_is_there() -> None:
    packages = {"cuda-bindings": "13.5.0", "nvidia-cuda-nvrtc": "13.5.37"}
    diagnosis = diagnose(gpu(cuda(cuda_0=""), packages=packages))
    expected = "cuda-bindings 13.5.0, nvidia-cuda-nvrtc 13.5.37; kernels compile, cuda:0 answers"
    finding = found(diagnosis, "CUDA packages")
    assert (finding.status, finding.detail) == ("ok", expected)
    assert found(diagnosis, "on tensorrt-rtx").detail == "1.7.1; cuda:0: fp32, fp16, bf16"
    assert diagnosis.runs == {"onnxruntime": ("cpu", "cuda:0"), "tensorrt-rtx": ("cuda:0",)}


@pytest.mark.parametrize(
    ("lacking", "packages", "detail", "remedy"),
    [
        (
            {"cuda-bindings": NO_BINDINGS, "nvidia-cuda-nvrtc": NO_BINDINGS},
            {},
            "not installed: cuda-bindings, nvidia-cuda-nvrtc",
            "pip install 'flowturbo_trt[cuda]'",
        ),
        (
            {"nvidia-cuda-nvrtc": NO_NVRTC},
            {"cuda-bindings": "13.5.0"},
            "not installed: nvidia-cuda-nvrtc",
            "pip install 'flowturbo_trt[cuda]'",
        ),
        (
            {"nvidia-cuda-nvrtc": NO_NVRTC},
            {"cuda-bindings": "13.5.0", "nvidia-cuda-nvrtc": "13.5.37"},
            "nvidia-cuda-nvrtc: NVRTC, which compiles the kernels, is not there: Failure finding libnvrtc.so",
            "pip install --force-reinstall nvidia-cuda-nvrtc",
        ),
    ],
)
def test_packages_that_are_lacking(
    lacking: dict[str, str], packages: dict[str, str], detail: str, remedy: str
) -> None:
    """Nothing runs on the GPU without them, ONNX Runtime neither."""
    diagnosis = diagnose(gpu(cuda(lacking), packages=packages))
    finding = found(diagnosis, "CUDA packages")
    assert (finding.status, finding.detail, finding.remedy) == ("problem", detail, remedy)
    assert diagnosis.runs == {"onnxruntime": ("cpu",)}
    plans = found(diagnosis, "on tensorrt-rtx")
    assert (plans.status, plans.detail) == ("problem", "cannot reach the GPU")
    assert plans.remedy == "mend the CUDA packages, see above"
    idle = found(replace(FACTS, cuda_packages=cuda(lacking), packages=packages), "CUDA packages")
    assert (idle.status, idle.remedy) == ("not needed", f"only to run on a GPU: {remedy}")


def test_driver_that_is_too_old() -> None:
    error = "device cuda:0: its driver is made for CUDA 12.8, the cuda-bindings here for CUDA 13; update it"
    diagnosis = diagnose(gpu(cuda(cuda_0=error)))
    finding = found(diagnosis, "CUDA packages")
    assert finding.status == "problem"
    assert f"{finding.detail}; {finding.remedy}" == error
    assert diagnosis.runs == {"onnxruntime": ("cpu",)}


def test_one_of_two_gpus() -> None:
    facts = gpu(cuda(cuda_0="lost; restart the machine", cuda_1=""))
    facts = replace(facts, machine=replace(facts.machine, gpus=facts.machine.gpus * 2))
    assert diagnose(facts).runs["tensorrt-rtx"] == ("cuda:1",)


def test_packages_that_crash() -> None:
    diagnosis = diagnose(gpu(Answer(error="its process was killed by SIGSEGV")))
    finding = found(diagnosis, "CUDA packages")
    assert (finding.status, finding.detail) == ("problem", "its process was killed by SIGSEGV")
    assert finding.remedy == "pip install --force-reinstall cuda-bindings nvidia-cuda-nvrtc"
    assert "tensorrt-rtx" not in diagnosis.runs


def test_without_a_gpu() -> None:
    """It is no problem, and what is installed for one is told."""
    diagnosis = diagnose(replace(FACTS, backends=PLANS, packages={"cuda-bindings": "13.5.0"}))
    assert found(diagnosis, "CUDA packages").status == "ok"
    assert found(diagnosis, "TensorRT provider").status == "not needed"
    plans, missing = found(diagnosis, "on tensorrt-rtx"), found(diagnosis, "on tensorrt")
    assert (plans.status, plans.detail) == ("not needed", "1.7.1; there is no GPU")
    assert (missing.status, missing.detail) == ("not needed", "not installed")
    assert missing.remedy == "only to run its engines: pip install 'flowturbo_trt[tensorrt]'"


def test_tensorrt_without_its_libraries() -> None:
    backends = {**PLANS, "tensorrt": absent("tensorrt_libs")}
    finding = found(replace(FACTS, backends=backends), "on tensorrt")
    assert (finding.status, finding.remedy) == ("problem", "mend tensorrt_libs, see above")


@pytest.mark.parametrize(
    ("answer", "status", "detail"),
    [
        (onnxruntime("cuda:0"), "ok", "starts on cuda:0"),
        (onnxruntime(said=NO_TENSORRT), "not needed", "does not start: libnvinfer.so.10: cannot open shared"),
        (Answer(error="its process was killed by SIGSEGV"), "not needed", "does not start: its process was"),
    ],
)
def test_tensorrt_provider(answer: Answer, status: str, detail: str) -> None:
    """CUDA's provider does without it: that it does not start is no problem."""
    whole = onnxruntime("cpu", providers=("Tensorrt", "CUDA", "CPU"))
    finding = found(with_gpu(tensorrt=answer, onnxruntime=whole), "TensorRT provider")
    assert finding.status == status
    assert finding.detail.startswith(detail)
    assert finding.remedy.startswith("only for `--provider tensorrt`") == (status != "ok")


def test_onnxruntime_without_a_tensorrt_provider() -> None:
    finding = found(with_gpu(), "TensorRT provider")
    assert (finding.status, finding.detail) == ("not needed", "none in this one")


def test_providers_of_this_onnxruntime() -> None:
    """None but the CPU's starts where there is no GPU; asking is no error."""
    for provider in ("cuda", "tensorrt"):
        answer = ask("onnxruntime", provider, "cuda:77")
        assert answer.works, answer.error
        assert answer.details["devices"] == {}


def test_cuda_packages_of_this_machine() -> None:
    """NVRTC compiles without a GPU; one that there is not is told in one line."""
    pytest.importorskip("cuda.bindings.driver")
    answer = ask("cuda", "cuda:77")
    assert answer.details["lacking"] == {}
    assert "cuda:77" in answer.details["devices"]["cuda:77"]


def test_cuda_packages_that_are_not_there(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cuda"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    answer = ask("cuda", "cuda:0")
    assert list(answer.details["lacking"]) == ["cuda-bindings", "nvidia-cuda-nvrtc"]
    assert "No module named 'cuda.bindings'" in answer.details["lacking"]["cuda-bindings"]
    assert answer.details["devices"] == {}
