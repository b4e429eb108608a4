"""Findings about a published model that was asked for: whether it can be built here, and run."""

from collections.abc import Iterator, Sequence
from math import prod

from flowturbo_trt.bundle.manifest import Condition, Guidance, Model
from flowturbo_trt.evaluation.doctor.diagnosis import Diagnosis
from flowturbo_trt.evaluation.doctor.facts import HERE, Facts
from flowturbo_trt.evaluation.doctor.findings import Asked, Finding, free_memory, readable
from flowturbo_trt.export.preflight import WEIGHT_BYTES, Need, build_need
from flowturbo_trt.models.published import (
    CLASSES,
    DECODER_PARAMETERS,
    LATENT,
    NAMED_MODELS,
    parameter_count,
)
from flowturbo_trt.runtime.conditioning import Conditioning
from flowturbo_trt.runtime.memory_plan import TrajectoryPlan, plan_trajectory
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace

FLOAT32 = 4
# The decoder's last resolution: it enlarges latents 8 times, and there makes 128 channels of 256.
ENLARGES, LAST_CHANNELS = 8, 256 + 128
# What a bundle with a refiner is built for by default.
SCHEDULE = "H1P5R3"


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
    runs = [list(_runs(group, name, batch, facts, diagnosis)) for batch in batches]
    every = (builds, *runs)
    possible = all(any(finding.status == "ok" for finding in found) for found in every)
    return Asked(group, tuple(finding for found in every for finding in found), possible)


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


def _runs(group: str, name: str, batch: int, facts: Facts, diagnosis: Diagnosis) -> Iterator[Finding]:
    """Hold a run against the memory of the host in float32, and of every GPU in half of it."""
    devices = dict.fromkeys(device for found in diagnosis.runs.values() for device in found)
    for device in dict.fromkeys(("cpu", *devices)):
        on_gpu = device != "cpu"
        precision = "fp16" if on_gpu else "fp32"
        free = free_memory(facts, device)
        least = run_bytes(name, batch, WEIGHT_BYTES[precision], on_gpu=on_gpu)
        title = f"run, batch {batch}" + (f", {device}" if on_gpu else "")
        detail = f"takes at least {readable(least)} of memory in {precision}; {readable(free)} are there"
        if free is not None and least > free:
            remedy = "a smaller batch, fp16, or a machine with more memory"
            yield Finding(group, title, "problem", detail, remedy)
        else:
            yield Finding(group, title, "ok", detail)


def run_bytes(name: str, batch: int, itemsize: int, *, on_gpu: bool) -> int:
    """Return the least that a run takes where its engines work, in networks of `itemsize` bytes a value."""
    values = (sum(weight_bytes(name).values()) + activation_bytes(name, batch)) // FLOAT32
    return values * itemsize + _trajectory(name, batch, on_gpu=on_gpu).total


def _trajectory(name: str, batch: int, *, on_gpu: bool) -> TrajectoryPlan:
    """Plan the model's trajectory as it is built by default: guided, the conditioning hoisted."""
    config, (C, H, W) = NAMED_MODELS[name], LATENT
    program = trace(Schedule.parse(SCHEDULE), "guided")
    conditionings = {
        network: Conditioning(
            network, program.time_slots(network), batch, (6 * depth + 2) * config["hidden_size"], guided=True
        )
        for network, depth in (("predictor", config["depth"]), ("refiner", 1))
    }
    model = Model(
        family="sit",
        latent=LATENT,
        image=(H * ENLARGES, W * ENLARGES),
        conditions=(Condition("label", "int64", 0, CLASSES - 1, null=CLASSES),),
        guidance=Guidance(channels=C - 1, halves=2, default=1),
        config=config,
        refiner_config=None,
    )
    return plan_trajectory(program, batch, model, conditionings, on_gpu=on_gpu)


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
