"""The NVIDIA GPUs of this machine, as nvidia-smi shows them."""

import subprocess
from dataclasses import dataclass

from flowturbo_trt.sampling.errors import FlowTurboError


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
