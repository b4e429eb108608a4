"""What there is to know about a machine before a diagnosis: gathered here, judged elsewhere."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from flowturbo_trt.bundle.gpus import Gpu, GpuError, gpus
from flowturbo_trt.evaluation.doctor.probes import Answer, ask
from flowturbo_trt.evaluation.report import cpuinfo
from flowturbo_trt.export.preflight import ResourceError, available_disk, available_memory

# What a network's speed on a CPU depends on, on x86-64 and on ARM.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "i8mm", "bf16")
# Module → distribution: what `build` imports, and others.
EXPORT_LIBRARIES = {
    "torch": "torch",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnx_ir": "onnx-ir",
    "safetensors": "safetensors",
    "diffusers": "diffusers",
}
LIBRARIES = EXPORT_LIBRARIES | {"PIL": "pillow", "polygraphy": "polygraphy"}
# Modules that load their parts when asked for, and the part that is used.
PARTS = {"diffusers": ("AutoencoderKL",)}
TENSORRT_MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
# Backend → the module that it needs and the base install does not bring.
OPTIONAL_MODULES = TENSORRT_MODULES | {"openvino": "openvino"}
# Names of the places whose free disk is told.
HERE, TEMPORARY = "this folder", "temporary files"


@dataclass(frozen=True)
class Machine:
    """The hardware and its system; None is what it does not tell. `disks` are free bytes by place."""

    system: str
    python: tuple[int, ...]
    cpu: str
    cores: int
    instructions: tuple[str, ...]
    memory_total: int | None
    memory_available: int | None
    disks: Mapping[str, int | None]
    gpus: tuple[Gpu, ...]
    gpu_error: str
    cxx: str | None


@dataclass(frozen=True)
class Facts:
    """A machine and what of its libraries works.

    `packages` are the versions installed, `minimums` those required, both by distribution in lower case
    with hyphens; `onnxruntimes` are the distributions that bring the module onnxruntime. `registries` is
    what this version builds for and runs on; `onnxruntime` was tried on the CPU, `cuda` and `tensorrt` are
    its providers on the GPUs. `cuda_packages` tells what everything on a GPU takes beside its backend.
    `libraries` are by module, `compilers` and `backends` by backend.
    """

    machine: Machine
    packages: Mapping[str, str]
    minimums: Mapping[str, str]
    onnxruntimes: tuple[str, ...]
    registries: Answer
    onnxruntime: Answer
    cuda: Answer
    tensorrt: Answer
    cuda_packages: Answer
    libraries: Mapping[str, Answer] = field(default_factory=dict)
    compilers: Mapping[str, Answer] = field(default_factory=dict)
    backends: Mapping[str, Answer] = field(default_factory=dict)

    @property
    def has_gpu(self) -> bool:
        """Whether there is one; nvidia-smi need not know of it."""
        return bool(self.machine.gpus or self.cuda.details.get("devices"))

    def is_reached(self, device: str) -> bool:
        """Tell whether a device can be worked with from here: a GPU takes packages of its own."""
        told = self.cuda_packages
        if device == "cpu":
            return True
        unreached = told.details.get("devices", {}).get(device)
        return told.works and not told.details.get("lacking") and not unreached

    def devices(self, backend: str) -> dict[str, tuple[str, ...]]:
        """Return the devices that a backend runs on here, and the precisions it runs there."""
        if backend not in self.backends or not self.backends[backend].works:
            return {}
        if backend == "onnxruntime":
            answers = [answer.details.get("devices", {}) for answer in (self.onnxruntime, self.cuda)]
            found = {device: tuple(able) for devices in answers for device, able in devices.items()}
            return {device: able for device, able in found.items() if self.is_reached(device)}
        if "devices" in self.backends[backend].details:
            return {name: tuple(able) for name, able in self.backends[backend].details["devices"].items()}
        count = len(self.machine.gpus) if backend in self.registries.details["gpu"] else 0
        cards = (f"cuda:{index}" for index in range(count))
        return {card: ("fp32", "fp16", "bf16") for card in cards if self.is_reached(card)}


def gather() -> Facts:
    """Ask this machine; libraries are loaded by child processes, as many at once as there are cores."""
    machine = gather_machine()
    # What else is asked depends on it, and it is quick.
    registries = ask("registries")
    known = registries.details
    with ThreadPoolExecutor(max(2, min(machine.cores, 8))) as pool:
        libraries = {name: pool.submit(ask, "library", name, *PARTS.get(name, ())) for name in LIBRARIES}
        compilers = {name: _submit_compiler(pool, name) for name in known.get("compilers", ())}
        backends = {name: _submit_backend(pool, name) for name in known.get("backends", ())}
        onnxruntime = pool.submit(ask, "onnxruntime", "cpu", "cpu")
        # One is tried even if nvidia-smi shows none: containers may have the driver without that tool.
        cards = [f"cuda:{index}" for index in range(max(1, len(machine.gpus)))]
        cuda, tensorrt = (
            pool.submit(ask, "onnxruntime", provider, *cards) for provider in ("cuda", "tensorrt")
        )
        cuda_packages = pool.submit(ask, "cuda", *cards)
    installed = _distributions()
    return Facts(
        machine=machine,
        packages={name: distribution.version for name, distribution in installed.items()},
        minimums=_minimums(),
        onnxruntimes=_onnxruntimes(installed),
        registries=registries,
        onnxruntime=onnxruntime.result(),
        cuda=cuda.result(),
        tensorrt=tensorrt.result(),
        cuda_packages=cuda_packages.result(),
        libraries=_results(libraries),
        compilers=_results(compilers),
        backends=_results(backends),
    )


def _submit_compiler(pool: ThreadPoolExecutor, backend: str) -> "Future[Answer]":
    if backend in TENSORRT_MODULES:
        return pool.submit(ask, "tensorrt", TENSORRT_MODULES[backend])
    return pool.submit(ask, "compiler", backend)


def _submit_backend(pool: ThreadPoolExecutor, backend: str) -> "Future[Answer]":
    if backend in TENSORRT_MODULES:
        return pool.submit(ask, "library", TENSORRT_MODULES[backend])
    # Whose devices only it can tell.
    return pool.submit(ask, "openvino") if backend == "openvino" else pool.submit(ask, "backend", backend)


def _results(futures: "Mapping[str, Future[Answer]]") -> dict[str, Answer]:
    return {name: future.result() for name, future in futures.items()}


def gather_machine() -> Machine:
    """Ask the system; this loads no library."""
    try:
        cards, gpu_error = gpus(), ""
    except GpuError as error:
        cards, gpu_error = (), str(error)
    info = cpuinfo()
    flags = f"{info.get('flags', '')} {info.get('Features', '')}".split()
    return Machine(
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        python=tuple(sys.version_info[:3]),
        cpu=info.get("model name", platform.processor() or platform.machine()),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        instructions=tuple(name for name in INSTRUCTIONS if name in flags),
        memory_total=_memory_total(),
        memory_available=_memory_available(),
        disks=_disks(),
        gpus=cards,
        gpu_error=gpu_error,
        # The one that torch.compile takes.
        cxx=shutil.which(os.environ.get("CXX") or "g++"),
    )


def _memory_total() -> int | None:
    """Return the bytes of memory, or of the container's limit if that is less."""
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return None
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        file = Path("/sys/fs/cgroup") / name
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)


def _memory_available() -> int | None:
    try:
        return available_memory()
    except ResourceError:
        return None


def _disks() -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for place, folder in ((HERE, Path.cwd), (TEMPORARY, tempfile.gettempdir)):
        try:
            found[place] = available_disk(Path(folder()))
        # The folder a shell is in may have been removed; for temporary files there may be none to write to.
        except OSError:
            found[place] = None
    return found


def _distributions() -> dict[str, importlib.metadata.Distribution]:
    """Return what is installed, by name; what an interrupted pip has left without metadata is passed over."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        # The second is where older tools put it.
        told = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO")
        if told and distribution.name:
            found.setdefault(_normal(distribution.name), distribution)
    return found


def _onnxruntimes(installed: Mapping[str, importlib.metadata.Distribution]) -> tuple[str, ...]:
    """Return the distributions that bring the module onnxruntime: they write over each other."""
    return tuple(
        sorted(
            name
            for name, distribution in installed.items()
            if name.startswith(("onnxruntime", "ort-"))
            and "onnxruntime/__init__.py" in map(str, distribution.files or ())
        )
    )


def _minimums() -> dict[str, str]:
    """Return the least versions that this project's own metadata asks for, where it is installed."""
    try:
        required = importlib.metadata.requires("flowturbo_trt") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    matches = (re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", text) for text in required)
    return {_normal(match[1]): match[2] for match in matches if match}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
