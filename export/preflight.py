"""What a build needs in memory and on disk, held against what there is before anything long starts."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowturbo_trt.export.compile import is_as_is
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.program import NETWORKS

# Bytes of a weight by precision.
WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
# Measured with SiT-XL/2, decoders of 256 and 512 pixels: of the process with its libraries alone.
BASE_MEMORY = 600 * 10**6
# Beside all checkpoints: what the exporter transposes of a network, and the session it is checked with,
# or the activations of a large decoder.
EXPORT_COPIES = 1.7
# Beside the float32 graph, in the engine's precision: what is parsed, what is made of it, the finished plan.
COMPILE_COPIES = {"tensorrt": 2.8, "tensorrt-rtx": 2.8, "onnxruntime": 1.2, "openvino": 1.2}


class ResourceError(FlowTurboError):
    """The machine has too little memory or disk for a build."""


@dataclass(frozen=True)
class Need:
    """Bytes: the most memory held at once, and the disk taken until the build is done."""

    memory_bytes: int
    disk_bytes: int


def build_need(
    weight_bytes: Mapping[str, int], backends: Sequence[str], precisions: Mapping[str, str], variants: int
) -> Need:
    """Estimate a build's need where backends have one precision each (by backend); see engine_need."""
    sizes = {}
    for backend in backends:
        each = 0 if is_as_is(backend, precisions[backend]) else WEIGHT_BYTES[precisions[backend]]
        sizes[backend] = {n: size * each // WEIGHT_BYTES["fp32"] for n, size in weight_bytes.items() if each}
    return engine_need(weight_bytes, sizes, variants)


def engine_need(
    weight_bytes: Mapping[str, int], engine_sizes: Mapping[str, Mapping[str, int]], variants: int
) -> Need:
    """Estimate a build's need from the float32 bytes of its networks (predictor, decoder, …).

    `engine_sizes` are the bytes of what is compiled of them, by backend and network. Every variant of
    predictor and refiner has weights of its own on disk; in memory networks take turns, so the largest
    counts.
    """
    largest = max(weight_bytes.values())
    memory, disk = sum(weight_bytes.values()) + EXPORT_COPIES * largest, _on_disk(weight_bytes, variants)
    for backend, sizes in engine_sizes.items():
        for network, size in sizes.items():
            memory = max(memory, weight_bytes[network] + COMPILE_COPIES[backend] * size)
        # While the largest is compiled, its graph in this precision lies there as well.
        disk += _on_disk(sizes, variants) + max(sizes.values(), default=0)
    return Need(int(memory) + BASE_MEMORY, disk)


def _on_disk(sizes: Mapping[str, int], variants: int) -> int:
    return sum(size * (variants if network in NETWORKS else 1) for network, size in sizes.items())


def check_need(need: Need, out: Path) -> None:
    """Raise ResourceError when memory, or the disk that `out` is on, will not do."""
    for what, wanted, there in (
        ("memory", need.memory_bytes, available_memory()),
        ("disk space", need.disk_bytes, available_disk(out)),
    ):
        if wanted > there:
            raise ResourceError(
                f"{out}: the build needs about {readable(wanted)} of {what}, {readable(there)} are "
                "available; free some, or try nevertheless with --no-preflight"
            )


def readable(size: int) -> str:
    """Return a number of bytes in GiB or MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def available_memory() -> int:
    """Return the bytes this process may still take: free, reclaimable, and within its cgroup's limit."""
    info = dict(line.split(":") for line in _read("/proc/meminfo").splitlines() if ":" in line)
    free = [int(info["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in info else []
    for limit, used, cached in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "inactive_file"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        bound = _read(limit).strip()
        if bound.isdigit():
            # Pages of files count as used, but are given back when they are wanted.
            stat = dict(
                line.split() for line in _read(str(Path(limit).with_name("memory.stat"))).splitlines()
            )
            free.append(int(bound) - int(_read(used) or 0) + int(stat.get(cached, 0)))
    if not free:
        raise ResourceError("the free memory of this machine cannot be read; use --no-preflight")
    return max(0, min(free))


def available_disk(path: Path) -> int:
    """Return the free bytes where `path` is, or will be."""
    place = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(place).free


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
