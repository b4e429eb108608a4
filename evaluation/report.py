"""Results as files: figures with the machine and versions they were measured on."""

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowturbo_trt.bundle.environment import versions
from flowturbo_trt.sampling.errors import FlowTurboError


@dataclass(frozen=True)
class Check:
    """A promise and what was measured; `interval` is the central 95 % where there is one."""

    name: str
    value: float
    limit: str
    met: bool
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        spread = f" [{self.interval[0]:.3g}, {self.interval[1]:.3g}]" if self.interval else ""
        return f"{'✓' if self.met else '✗'} {self.name}: {self.value:.4g}{spread} ({self.limit})"


class GpuError(FlowTurboError):
    """No NVIDIA GPU can be seen; the message says how far it got."""


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU; bytes of memory in all and free, None where it does not tell."""

    name: str
    driver: str
    memory_bytes: int | None
    free_bytes: int | None
    compute_capability: str


_GPU_FIELDS = ("name", "driver_version", "memory.total", "memory.free", "compute_cap")


def machine() -> dict[str, Any]:
    """Describe the CPU, its cores, the operating system and the GPU."""
    fields = cpuinfo()
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "gpu": gpu(),
    }


def cpuinfo() -> dict[str, str]:
    """Return what the system tells of a processor, by field; nothing where it is not Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def gpu() -> str | None:
    """Return name and driver of the first NVIDIA GPU, or None without one."""
    try:
        found = gpus()
    except GpuError:
        return None
    return f"{found[0].name}, {found[0].driver}"


def gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs that nvidia-smi shows; raises GpuError when there are none."""
    query = ["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError as error:
        raise GpuError("no NVIDIA driver found: there is no nvidia-smi") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise GpuError(f"nvidia-smi does not answer: {error}") from error
    if done.returncode or not done.stdout.strip():
        reason = " ".join((done.stdout + done.stderr).split()) or f"exit status {done.returncode}"
        raise GpuError(f"nvidia-smi shows no GPU: {reason}")
    return tuple(map(_read_gpu, done.stdout.strip().splitlines()))


def _read_gpu(line: str) -> Gpu:
    name, driver, memory, free, capability = (field.strip() for field in line.split(","))
    # MiB; what a card does not tell reads "[N/A]".
    total, unused = (int(text) * 2**20 if text.isdigit() else None for text in (memory, free))
    return Gpu(name, driver, total, unused, capability)


def write_report(path: Path, figures: dict[str, Any], checks: list[Check]) -> None:
    """Write figures and checks as JSON, with the machine and the versions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": machine(),
        "versions": versions(),
        **figures,
        "checks": [asdict(check) for check in checks],
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
