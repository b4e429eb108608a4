"""From facts about a machine to findings: what it is, what it can build and run, and why not."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import flowturbo_trt
from flowturbo_trt.evaluation.doctor.building import build_findings, buildable
from flowturbo_trt.evaluation.doctor.facts import TEMPORARY, Facts
from flowturbo_trt.evaluation.doctor.findings import Finding, Library, judge, readable

OLDEST_PYTHON = (3, 11)
CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Diagnosis:
    """All findings, the backends to `build` for, and the devices by backend that it `runs` on."""

    findings: tuple[Finding, ...]
    builds: tuple[str, ...]
    runs: Mapping[str, tuple[str, ...]]


def diagnose(facts: Facts) -> Diagnosis:
    """Judge a machine."""
    findings = (*machine_findings(facts), *build_findings(facts), *run_findings(facts))
    runs = {backend: tuple(devices) for backend in facts.backends if (devices := facts.devices(backend))}
    return Diagnosis(findings, buildable(findings), runs)


def machine_findings(facts: Facts) -> Iterator[Finding]:
    """Tell what the machine is; few of its traits are problems by themselves."""
    machine = facts.machine
    installed = "flowturbo-trt" in facts.packages
    note = "" if installed else ", not installed, so that the versions it requires are not known"
    yield Finding("machine", "flowturbo_trt", "ok", f"{flowturbo_trt.__version__}{note}")
    yield Finding("machine", "system", "ok", machine.system)
    python = ".".join(map(str, machine.python))
    if machine.python[:2] < OLDEST_PYTHON:
        least = ".".join(map(str, OLDEST_PYTHON))
        remedy = f"install Python {least} or newer"
        yield Finding("machine", "Python", "problem", f"{python}, expected {least} or newer", remedy)
    else:
        yield Finding("machine", "Python", "ok", python)
    special = ", ".join(machine.instructions) or "no vector instructions known of"
    cores = f"{machine.cores} core{'s' * (machine.cores != 1)}"
    yield Finding("machine", "CPU", "ok", f"{machine.cpu}, {cores}; {special}")
    memory = f"{readable(machine.memory_available)} of {readable(machine.memory_total)} available"
    yield Finding("machine", "memory", "ok", memory)
    for place, free in machine.disks.items():
        yield _disk(place, free)
    if not machine.gpus:
        wanted = "only if a GPU is to be used: install NVIDIA's driver, and give containers the device"
        yield Finding("machine", "GPU", "not needed", machine.gpu_error, wanted)
    for index, gpu in enumerate(machine.gpus):
        memory = f"{readable(gpu.free_bytes)} of {readable(gpu.memory_bytes)} free"
        about = f"{gpu.name}, compute capability {gpu.compute_capability}, {memory}, driver {gpu.driver}"
        yield Finding("machine", f"GPU {index}", "ok", about)


def _disk(place: str, free: int | None) -> Finding:
    name = f"disk, {place}"
    if free is not None:
        return Finding("machine", name, "ok", f"{readable(free)} free")
    remedy = (
        "set TMPDIR to a folder that can be written to" if place == TEMPORARY else "cd to one that exists"
    )
    return Finding("machine", name, "problem", "there is no such folder", remedy)


def run_findings(facts: Facts) -> Iterator[Finding]:
    """Tell whether the base install works, and on which devices engines run."""
    yield judge(facts, "run", "numpy", Library("numpy"), facts.registries)
    yield judge(facts, "run", "Pillow", Library("pillow", use="writes image files"), facts.libraries["PIL"])
    yield _onnxruntime(facts)
    yield _cuda(facts)
    known = facts.registries.details
    for backend in dict.fromkeys((*known.get("backends", ()), *known.get("compilers", ()))):
        yield _backend(facts, backend)


def _onnxruntime(facts: Facts) -> Finding:
    brought_by = facts.onnxruntimes
    preferred = "onnxruntime-gpu" if "onnxruntime-gpu" in brought_by else (*brought_by, "onnxruntime")[0]
    if len(brought_by) > 1:
        both = ", ".join(f"{name} {facts.packages.get(name, '')}".strip() for name in brought_by)
        remedy = f"pip uninstall -y {' '.join(brought_by)} && pip install {preferred}"
        detail = f"installed {len(brought_by)} times over, each overwriting the other's files: {both}"
        return Finding("run", "onnxruntime", "problem", detail, remedy)
    providers = facts.onnxruntime.details.get("providers", ())
    short = ", ".join(provider.removesuffix("ExecutionProvider") for provider in providers)
    library = Library(preferred, use=f"{preferred}, with providers {short}")
    finding = judge(facts, "run", "onnxruntime", library, facts.onnxruntime)
    if finding.status == "ok" and "cpu" not in facts.onnxruntime.details["devices"]:
        remedy = f"pip install --force-reinstall {preferred}"
        return Finding("run", "onnxruntime", "problem", "multiplies numbers wrongly, or not at all", remedy)
    return finding


def _cuda(facts: Facts) -> Finding:
    name, gpus, said = "CUDA provider", facts.machine.gpus, facts.cuda.said
    if devices := facts.cuda.details.get("devices", ()):
        return Finding("run", name, "ok", f"starts on {', '.join(devices)}")
    if not facts.onnxruntime.works:
        return Finding("run", name, "not needed", "onnxruntime does not work, see above")
    built_in = CUDA in facts.onnxruntime.details.get("providers", ())
    if not gpus:
        detail = "built in, but there is no GPU" if built_in else "none, and there is no GPU"
        return Finding("run", name, "not needed", detail)
    if not built_in:
        installed = " ".join(facts.onnxruntimes) or "onnxruntime"
        remedy = f"pip uninstall -y {installed} && pip install onnxruntime-gpu"
        return Finding("run", name, "problem", "this onnxruntime has none, so the GPU is not used", remedy)
    reason = facts.cuda.error or _reason(said)
    return Finding("run", name, "problem", f"does not start: {reason}", _cuda_remedy(said))


def _reason(said: str) -> str:
    """Find in what ONNX Runtime printed why it could not start a provider."""
    for pattern in (r"with error: (.+)", r"(CUDA failure .+)", r"(CUDNN failure .+)"):
        if match := re.search(pattern, said):
            return match[1].strip()[:200]
    return (said.splitlines()[-1:] or ["it gave no reason"])[0][:200]


def _cuda_remedy(said: str) -> str:
    match = re.search(r"Require (cuDNN \S+) and (CUDA [\d.]+\*?)", said)
    wanted = f"{match[2]} and {match[1]}" if match else "the CUDA and cuDNN it was made for"
    return f"install {wanted} where the loader finds them (LD_LIBRARY_PATH), and a driver for that CUDA"


def _backend(facts: Facts, backend: str) -> Finding:
    name = f"on {backend}"
    if backend not in facts.backends:
        return Finding("run", name, "not needed", "this version builds its engines and cannot run them yet")
    answer = facts.backends[backend]
    if not answer.works:
        remedy = f"mend {answer.missing or backend}, see above"
        return Finding("run", name, "problem", f"cannot start: {answer.error}", remedy)
    if devices := facts.devices(backend):
        able = "; ".join(f"{device}: {', '.join(precisions)}" for device, precisions in devices.items())
        return Finding("run", name, "ok", able)
    if backend in facts.registries.details["gpu"]:
        remedy = "only to run its engines: a machine with an NVIDIA GPU and driver"
        return Finding("run", name, "not needed", "there is no GPU", remedy)
    return Finding("run", name, "problem", "no device to run on", f"mend {backend}, see above")
