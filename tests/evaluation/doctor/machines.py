"""Made-up machines: facts as they would be gathered there."""

from dataclasses import replace
from typing import Any

from flowturbo_trt.bundle.gpus import Gpu
from flowturbo_trt.evaluation.doctor.diagnosis import Diagnosis, diagnose
from flowturbo_trt.evaluation.doctor.facts import EXPORT_LIBRARIES, HERE, TEMPORARY, Facts, Machine
from flowturbo_trt.evaluation.doctor.findings import Finding
from flowturbo_trt.evaluation.doctor.probes import Answer

GIB = 2**30
L4 = Gpu("NVIDIA L4", "580.65.06", 24 * GIB, 23 * GIB, "8.9")
# A run-only machine, on which `build` has nothing it needs.
BARE = {module: Answer(error=f"No module named '{module}'", missing=module) for module in EXPORT_LIBRARIES}
# As ONNX Runtime 1.31 prints it.
NO_CUDA_LIBRARIES = (
    "2026-01-01 [E:onnxruntime:Default, provider_bridge_ort.cc] FAIL : Failed to load library "
    "providers_cuda.so with error: libcublasLt.so.13: cannot open shared object file: No such file\n"
    "2026-01-01 [W:onnxruntime:Default] Failed to create CUDAExecutionProvider. Require cuDNN 9.* and CUDA "
    "13.*. Please install all dependencies as mentioned in the GPU requirements page"
)


NO_DRIVER = "device cuda:0 needs an NVIDIA GPU and its driver, which do not answer; use --device cpu"
# cuda-bindings and NVRTC that work with the GPU.
REACHED = Answer(details={"lacking": {}, "devices": {"cuda:0": ""}})


def absent(module: str) -> Answer:
    return Answer(error=f"No module named '{module}'", missing=module)


def onnxruntime(*devices: str, providers: tuple[str, ...] = ("CUDA", "CPU"), said: str = "") -> Answer:
    """Return an answer of an ONNX Runtime that works on some devices, in fp32 and fp16."""
    details = {
        "providers": [f"{name}ExecutionProvider" for name in providers],
        "devices": {device: ["fp32", "fp16"] for device in devices},
    }
    return Answer(version="1.31.1", said=said, details=details)


MACHINE = Machine(
    system="Linux 6.1, x86_64",
    python=(3, 11, 7),
    cpu="AMD EPYC",
    cores=2,
    instructions=("avx2", "avx512f"),
    memory_total=24 * GIB,
    memory_available=20 * GIB,
    disks={HERE: 70 * GIB, TEMPORARY: 70 * GIB},
    gpus=(),
    gpu_error="no NVIDIA driver found: there is no nvidia-smi",
    cxx="/usr/bin/g++",
)
FACTS = Facts(
    machine=MACHINE,
    packages={"numpy": "2.4.6", "onnxruntime-gpu": "1.31.1", "torch": "2.13.0+cpu"},
    minimums={"torch": "2.9"},
    onnxruntimes=("onnxruntime-gpu",),
    registries=Answer(
        version="2.4.6",
        details={
            "compilers": ["onnxruntime", "tensorrt-rtx", "tensorrt"],
            "precisions": {"onnxruntime": "fp32", "tensorrt-rtx": "fp16", "tensorrt": "fp16"},
            "gpu": ["tensorrt-rtx", "tensorrt"],
            "backends": ["onnxruntime"],
        },
    ),
    onnxruntime=onnxruntime("cpu"),
    cuda=onnxruntime(said=NO_CUDA_LIBRARIES),
    tensorrt=onnxruntime(said=NO_CUDA_LIBRARIES),
    cuda_packages=Answer(details={"lacking": {}, "devices": {"cuda:0": NO_DRIVER}}),
    libraries={module: Answer(version="3.0") for module in (*EXPORT_LIBRARIES, "PIL", "polygraphy")},
    compilers={
        "onnxruntime": Answer(version="onnxruntime 1.31.1"),
        "tensorrt-rtx": absent("tensorrt_rtx"),
        "tensorrt": absent("tensorrt"),
    },
    backends={"onnxruntime": Answer()},
)


def machine(**changes: Any) -> Facts:
    """Return the facts of a machine without a GPU, some of its hardware changed."""
    return replace(FACTS, machine=replace(MACHINE, **changes))


def with_gpu(cuda: Answer | None = None, **changes: Any) -> Facts:
    """Return the facts of a machine with an L4 on which the CUDA provider starts, unless told otherwise."""
    facts = machine(gpus=(L4,), gpu_error="")
    cuda = onnxruntime("cuda:0") if cuda is None else cuda
    return replace(facts, **{"cuda": cuda, "cuda_packages": REACHED, **changes})


def compiling(**answers: Answer) -> dict[str, Answer]:
    """Return what the compilers of the usual machine answer, those of some backends (with _) changed."""
    return {**FACTS.compilers, **{name.replace("_", "-"): answer for name, answer in answers.items()}}


def found(diagnosis: Diagnosis | Facts, name: str) -> Finding:
    """Return the finding of a name."""
    diagnosis = diagnose(diagnosis) if isinstance(diagnosis, Facts) else diagnosis
    (finding,) = (finding for finding in diagnosis.findings if finding.name == name)
    return finding
