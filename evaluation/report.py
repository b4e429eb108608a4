"""Results as files: figures with the machine and versions they were measured on."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowturbo_trt.bundle.environment import versions
from flowturbo_trt.bundle.gpus import GpuError, gpus


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
