"""Findings: one thing looked at each, with what helps where it is not as it should be."""

import re
from dataclasses import dataclass
from typing import Literal

from flowturbo_trt.evaluation.doctor.facts import Facts
from flowturbo_trt.evaluation.doctor.probes import Answer
from flowturbo_trt.export import preflight

Status = Literal["ok", "problem", "not needed"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at. Every problem has a remedy; what is not needed may have one."""

    group: str
    name: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Asked:
    """Findings about one thing asked for, and whether it is possible on this machine."""

    what: str
    findings: tuple[Finding, ...]
    possible: bool


def readable(size: int | None) -> str:
    """Return a number of bytes in GiB or MiB, if it is known."""
    return "an unknown size" if size is None else preflight.readable(size)


def free_memory(facts: Facts, device: str) -> int | None:
    """Return the free bytes of a device's memory, if they are known."""
    if device == "cpu":
        return facts.machine.memory_available
    index = int(device.removeprefix("cuda:"))
    return facts.machine.gpus[index].free_bytes if index < len(facts.machine.gpus) else None


@dataclass(frozen=True)
class Library:
    """A library to judge: its distribution, the extra it comes with (none: the base install), its use."""

    package: str
    extra: str = ""
    use: str = ""

    @property
    def install(self) -> str:
        return f"pip install 'flowturbo_trt[{self.extra}]'" if self.extra else "pip install flowturbo_trt"


def judge(facts: Facts, group: str, name: str, library: Library, answer: Answer) -> Finding:
    """Tell whether a library is missing, broken, too old, or well."""
    package = library.package
    version = facts.packages.get(package) or answer.version
    least = facts.minimums.get(package, "0")
    if answer.missing and package not in facts.packages:
        return Finding(group, name, "problem", "not installed", library.install)
    if not answer.works:
        broken = f"{version} cannot be imported: {answer.error}".strip()
        return Finding(group, name, "problem", broken, f"pip install --force-reinstall {package}")
    if _numbers(version) < _numbers(least):
        old = f"{version}, expected {least} or newer"
        return Finding(group, name, "problem", old, f"{library.install} --upgrade")
    return Finding(group, name, "ok", "; ".join(filter(None, (version, library.use))))


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
