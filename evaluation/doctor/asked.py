"""Findings about what was asked for: whether a bundle runs on a machine, and a model can be built there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from flowturbo_trt.bundle.manifest import BundleError, Engine, Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.doctor.diagnosis import Diagnosis
from flowturbo_trt.evaluation.doctor.facts import HERE, Facts
from flowturbo_trt.evaluation.doctor.findings import Asked, Finding, readable
from flowturbo_trt.export.preflight import Need, build_need
from flowturbo_trt.models.published import DECODER_PARAMETERS, LATENT, NAMED_MODELS, parameter_count

FLOAT32 = 4
# The decoder's last resolution: it enlarges latents 8 times, and there makes 128 channels of 256.
ENLARGES, LAST_CHANNELS = 8, 256 + 128


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
    elif not facts.backends[backend].works:
        reasons = [Obstacle(f"{backend} cannot start here", f"mend {backend}, see above")]
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
    """Hold the engines that the default schedule loads against each device that runs all of them."""
    programs = manifest.programs[manifest.default_schedule]
    wanted: list[tuple[str, str | None]] = list(next(iter(programs.values())).evaluations())
    if manifest.model.image is not None:
        wanted.append(("decoder", None))
    try:
        engines = [manifest.engine(network, variant, backend) for network, variant in wanted]
    except BundleError as error:
        detail, _, remedy = str(error).partition("; ")
        yield Finding(group, backend, "problem", detail, remedy)
        return
    files = {file for engine in engines for file in engine.files}
    size = sum(manifest.files[file].bytes for file in files)
    for device, able in facts.devices(backend).items():
        if any(_obstacle(engine, facts, device, able) for engine in engines):
            continue
        free = _free(facts, device)
        detail = f"its {backend} engines weigh {readable(size)}, {readable(free)} are free"
        fits = free is None or size <= free
        remedy = "" if fits else "free memory, or build it with --precision fp16 for half the size"
        yield Finding(group, f"memory, {device}", "ok" if fits else "problem", detail, remedy)


def _free(facts: Facts, device: str) -> int | None:
    if device == "cpu":
        return facts.machine.memory_available
    index = int(device.removeprefix("cuda:"))
    return facts.machine.gpus[index].free_bytes if index < len(facts.machine.gpus) else None


def ask_model(name: str, batches: Sequence[int], facts: Facts, diagnosis: Diagnosis) -> Asked:
    """Hold what building a published model takes, with refiner and decoder, against what there is.

    Batch sizes do not change that: what a run needs at least is held against the memory for each.
    """
    group = f"model {name}"
    weights = weight_bytes(name)
    if not diagnosis.builds:
        detail, remedy = "no backend can be built for here", "pip install 'flowturbo_trt[export]', see above"
        return Asked(group, (Finding(group, "build", "problem", detail, remedy),), False)
    builds = []
    for backend in diagnosis.builds:
        precision = facts.registries.details["precisions"][backend]
        need = build_need(weights, [backend], {backend: precision}, 1)
        builds.append(_build(group, f"build for {backend} {precision}", need, facts))
    runs = [_run(group, name, batch, facts) for batch in batches]
    possible = any(f.status == "ok" for f in builds) and all(f.status == "ok" for f in runs)
    return Asked(group, (*builds, *runs), possible)


def _build(group: str, name: str, need: Need, facts: Facts) -> Finding:
    memory, disk = facts.machine.memory_available, facts.machine.disks[HERE]
    detail = (
        f"takes about {readable(need.memory_bytes)} of memory and {readable(need.disk_bytes)} of disk; "
        f"{readable(memory)} and {readable(disk)} are there"
    )
    remedies = []
    if memory is not None and need.memory_bytes > memory:
        remedies.append("free memory, or build on a machine with more")
    if disk is not None and need.disk_bytes > disk:
        remedies.append("free disk, or build in a folder with more")
    return Finding(group, name, "problem" if remedies else "ok", detail, "; ".join(remedies))


def _run(group: str, name: str, batch: int, facts: Facts) -> Finding:
    memory, least = (
        facts.machine.memory_available,
        sum(weight_bytes(name).values()) + activation_bytes(name, batch),
    )
    detail = f"takes at least {readable(least)} of memory in float32; {readable(memory)} are there"
    if memory is not None and least > memory:
        remedy = "a smaller batch, fp16, or a machine with more memory"
        return Finding(group, f"run, batch {batch}", "problem", detail, remedy)
    return Finding(group, f"run, batch {batch}", "ok", detail)


def weight_bytes(name: str) -> dict[str, int]:
    """Return the float32 bytes of a published model's networks."""
    counts = {
        "predictor": parameter_count(name),
        "refiner": parameter_count(name, refines=True),
        "decoder": DECODER_PARAMETERS,
    }
    return {network: FLOAT32 * count for network, count in counts.items()}


def activation_bytes(name: str, batch: int) -> int:
    """Return what must be held at once in float32 where most is: a lower bound of what a run takes.

    That is the MLP's hidden layer beside its input, the scores of attention, or the decoder's last
    convolution; guidance doubles the rows of the first two.
    """
    config, (_, H, W) = NAMED_MODELS[name], LATENT
    tokens: int = H * W // config["patch_size"] ** 2
    mlp: int = 2 * batch * tokens * 5 * config["hidden_size"]
    scores: int = 2 * batch * config["num_heads"] * tokens**2
    decoder = batch * LAST_CHANNELS * prod((H * ENLARGES, W * ENLARGES))
    return FLOAT32 * max(mlp, scores, decoder)
