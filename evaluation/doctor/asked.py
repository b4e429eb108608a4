"""Findings about a bundle that was asked for: whether it runs on a machine, and where."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowturbo_trt.bundle.manifest import BundleError, Engine, Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.doctor.facts import OPTIONAL_MODULES, Facts
from flowturbo_trt.evaluation.doctor.findings import Asked, Finding, free_memory, readable
from flowturbo_trt.runtime.conditioning import needed_engines
from flowturbo_trt.runtime.memory_plan import MemoryPlan, plan_memory


@dataclass(frozen=True)
class Obstacle:
    """Why an engine does not run here, and what helps."""

    reason: str
    remedy: str


def ask_bundle(path: Path, facts: Facts) -> Asked:
    """Open a bundle, hash its files, and tell which of its engines run here."""
    group = f"bundle {path}"
    try:
        bundle = Bundle.open(path)
        bundle.check_all()
    except (BundleError, OSError) as error:
        detail, _, remedy = str(error).partition("; ")
        remedy = remedy or "give a bundle that `flowturbo_trt build` has written"
        return Asked(group, (Finding(group, "files", "problem", detail, remedy),), False)
    manifest = bundle.manifest
    count, size = len(manifest.files), sum(record.bytes for record in manifest.files.values())
    whole = Finding(group, "files", "ok", f"{count} as they were built, {readable(size)}")
    backends = dict.fromkeys(engine.backend for engine in manifest.engines)
    memory = [finding for backend in backends for finding in _memory(group, manifest, facts, backend)]
    runs = any(finding.status == "ok" for finding in memory)
    return Asked(group, (whole, *_engines(group, manifest, facts, runs), *memory), runs)


def _engines(group: str, manifest: Manifest, facts: Facts, runs: bool) -> Iterator[Finding]:
    """Tell of engines alike at once; those that do not run are a problem where the bundle does not."""
    alike: dict[tuple[str, ...], list[Engine]] = {}
    for engine in manifest.engines:
        alike.setdefault((engine.backend, engine.precision, engine.builder, *engine.targets), []).append(
            engine
        )
    for (backend, precision, *_), engines in alike.items():
        held = ", ".join(dict.fromkeys(e.name for e in engines))
        name = f"{backend} {precision}"
        found = obstacles(engines[0], facts)
        if not found:
            devices = [
                d for d, able in facts.devices(backend).items() if not _obstacle(engines[0], facts, d, able)
            ]
            yield Finding(group, name, "ok", f"{held}: on {', '.join(devices)}")
        else:
            reasons = "; ".join(obstacle.reason for obstacle in found)
            remedy = "" if runs else " and ".join(dict.fromkeys(obstacle.remedy for obstacle in found))
            yield Finding(group, name, "not needed" if runs else "problem", f"{held}: {reasons}", remedy)


def obstacles(engine: Engine, facts: Facts) -> list[Obstacle]:
    """Return why an engine runs on none of this machine's devices; nothing if it runs on one."""
    backend, gpus = engine.backend, facts.machine.gpus
    devices = facts.devices(backend)
    found = [_obstacle(engine, facts, device, able) for device, able in devices.items()]
    if devices:
        return [] if None in found else list(dict.fromkeys(obstacle for obstacle in found if obstacle))
    other = f"rebuild it with --backend {' or '.join(name for name in facts.backends if name != backend)}"
    if backend not in facts.backends:
        reasons = [Obstacle(f"this version cannot run engines of {backend} yet", other)]
    elif (missing := facts.backends[backend].missing) and missing == OPTIONAL_MODULES.get(backend):
        reasons = [Obstacle(f"{backend} is not installed", f"pip install 'flowturbo_trt[{backend}]'")]
    elif not facts.backends[backend].works:
        reasons = [Obstacle(f"{backend} cannot start here", f"mend {backend}, see above")]
    elif backend in facts.registries.details["gpu"] and not facts.has_gpu:
        reasons = [Obstacle("there is no GPU", f"use a machine with an NVIDIA GPU, or {other}")]
    else:
        reasons = [
            Obstacle(f"{backend} has no device here", f"mend {backend}, see above, or use another machine")
        ]
    # Also of a backend that cannot run: the next version may.
    mismatches = [_mismatch(engine, facts, index) for index in range(len(gpus))]
    if gpus and None not in mismatches:
        reasons += [obstacle for obstacle in mismatches if obstacle]
    return list(dict.fromkeys(reasons))


def _obstacle(engine: Engine, facts: Facts, device: str, able: Sequence[str]) -> Obstacle | None:
    if engine.precision not in able:
        remedy = f"rebuild it with --precision {engine.backend}={able[0]}"
        return Obstacle(f"{engine.backend} has no {engine.precision} arithmetic on {device}", remedy)
    if device == "cpu":
        return None
    return _mismatch(engine, facts, int(device.removeprefix("cuda:")))


def _mismatch(engine: Engine, facts: Facts, index: int) -> Obstacle | None:
    """Tell whether an engine was compiled for other GPUs than this one."""
    if index >= len(facts.machine.gpus):
        return None
    gpu = facts.machine.gpus[index]
    _, bound, built_on = engine.builder.partition(" for ")
    if bound and built_on.partition(",")[0] != gpu.name:
        remedy = f"rebuild it on this machine with --backend {engine.backend}"
        return Obstacle(f"built on {built_on}, and cuda:{index} is {gpu.name}", remedy)
    wanted = {target.lower().removeprefix("sm").replace(".", "") for target in engine.targets}
    if wanted and gpu.compute_capability.replace(".", "") not in wanted:
        targets = ", ".join(engine.targets)
        reason = f"built for compute capability {targets}, and cuda:{index} has {gpu.compute_capability}"
        return Obstacle(reason, f"rebuild it with --target {gpu.compute_capability}, or without --target")
    return None


def _memory(group: str, manifest: Manifest, facts: Facts, backend: str) -> Iterator[Finding]:
    """Hold what the default schedule takes at all batch sizes against each device that runs its engines."""
    program = next(iter(manifest.programs[manifest.default_schedule].values()))
    try:
        wanted = needed_engines(manifest, program, backend)
        engines = [manifest.engine(network, variant, backend) for network, variant in wanted]
        for device, able in facts.devices(backend).items():
            if not any(_obstacle(engine, facts, device, able) for engine in engines):
                on_gpu = device != "cpu"
                plan = plan_memory(manifest, program, manifest.batches, backend, on_gpu=on_gpu)
                yield _held(group, plan, device, facts)
    except BundleError as error:
        detail, _, remedy = str(error).partition("; ")
        yield Finding(group, backend, "problem", detail, remedy)


def _held(group: str, plan: MemoryPlan, device: str, facts: Facts) -> Finding:
    """Hold a plan against a device's memory, and the host's where copies are made from there."""
    free, host = free_memory(facts, device), facts.machine.memory_available
    batches = ", ".join(str(trajectory.batch) for trajectory in plan.trajectories)
    name = f"memory, {device}"
    detail = (
        f"{plan.backend} takes {readable(plan.total)} for batches {batches}, {readable(plan.weights)} of it "
        f"weights; {readable(free)} are free. On top come {plan.unknown}"
    )
    if free is not None and plan.total > free:
        remedy = "free memory, or build it with --precision fp16 or for smaller batches"
        return Finding(group, name, "problem", detail, remedy)
    if host is not None and plan.pinned > host:
        pinned = f"{readable(plan.pinned)} of the host's memory are for copies, {readable(host)} are free"
        return Finding(group, name, "problem", pinned, "free memory, or build it for smaller batches")
    return Finding(group, name, "ok", detail)
