"""From facts about a machine to findings: what it is, what it can build and run, and why not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import flowturbo_trt
from flowturbo_trt.evaluation.doctor.building import build_findings, buildable
from flowturbo_trt.evaluation.doctor.facts import TEMPORARY, Facts
from flowturbo_trt.evaluation.doctor.findings import Finding, readable
from flowturbo_trt.evaluation.doctor.running import run_findings

OLDEST_PYTHON = (3, 11)


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
