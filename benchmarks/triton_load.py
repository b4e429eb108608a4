"""What a Triton server adds to the pipeline it serves, on the digits: latency, throughput, memory."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flowturbo_trt.benchmarks.serving_load import GUIDANCE, Load, closed_loop, open_loop, pooled
from flowturbo_trt.benchmarks.triton_server import TritonServer, resident_bytes, start
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.examples.digits.bundle import digits_options
from flowturbo_trt.export.build import build
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.serving.triton.options import ModelOptions
from flowturbo_trt.serving.triton.repository import write_repository

MODEL = "digits"
BATCH = 8
CLIENTS = 16
ROUNDS = 7
SECONDS = 4.0
OPEN_SECONDS = 20.0
# Of what CLIENTS got in closed loop.
OPEN_SHARES = (0.5, 0.8)
# One of two cores: the other one is for the server's front and the clients.
THREADS = 1
OVERHEAD, LATENCY, THROUGHPUT = 1.10, 1.15, 0.85


def measure(
    folder: Path, rounds: int = ROUNDS, seconds: float = SECONDS, open_seconds: float = OPEN_SECONDS
) -> tuple[dict[str, Any], list[Check]]:
    """Serve the digits and put loads on the server, in turn with the pipeline in this process."""
    bundle = build(replace(digits_options(), batches=(1, BATCH)), folder / MODEL).path
    write_repository(bundle, folder / "models", MODEL, ModelOptions(threads=THREADS))
    with Pipeline.load(bundle, threads=THREADS) as pipeline, start(folder / "models") as server:
        direct, loads = _in_turn(pipeline, server, rounds, seconds)
        rate = pooled(loads["clients"]).throughput
        opened = {
            f"open loop, {share:.0%} of that": open_loop(
                server.grpc, MODEL, rate=share * rate, seconds=open_seconds
            )
            for share in OPEN_SHARES
        }
        memory = _memory(server)
    closed = {
        "1 client": pooled(loads["one"]),
        f"1 client, {BATCH} images a request": pooled(loads["batch"]),
        f"{CLIENTS} clients": pooled(loads["clients"]),
    }
    figures = {
        "precision": "fp32",
        "backend": "onnxruntime",
        "schedule": "H1P5R3",
        "guidance": GUIDANCE,
        "threads": THREADS,
        "in_process_ms": {
            str(rows): statistics.median(times) * 1e3 for rows, times in zip((1, BATCH), direct, strict=True)
        },
        "loads": {name: load.figures() for name, load in (closed | opened).items()},
        "memory_megabytes": {"after these loads": memory},
    }
    return figures, _checks(direct, loads, [*closed.values(), *opened.values()])


def _memory(server: TritonServer) -> dict[str, float]:
    """Return the memory of the server's own process and of one instance of the model, in MB."""
    (instance,) = server.stubs()
    return {"server": resident_bytes(server.process.pid) / 1e6, "instance": resident_bytes(instance) / 1e6}


def _in_turn(
    pipeline: Pipeline, server: TritonServer, rounds: int, seconds: float
) -> tuple[tuple[list[float], list[float]], dict[str, list[Load]]]:
    """Return seconds per call of the pipeline, for one image and a batch, by round; and the loads."""
    single: list[float] = []
    batch: list[float] = []
    loads: dict[str, list[Load]] = {"one": [], "batch": [], "clients": []}
    for _ in range(rounds):
        single.append(_seconds_per_call(pipeline, 1, seconds))
        loads["one"].append(closed_loop(server.grpc, MODEL, clients=1, seconds=seconds))
        batch.append(_seconds_per_call(pipeline, BATCH, seconds))
        loads["batch"].append(closed_loop(server.grpc, MODEL, clients=1, seconds=seconds, rows=BATCH))
        loads["clients"].append(closed_loop(server.grpc, MODEL, clients=CLIENTS, seconds=seconds))
    return (single, batch), loads


def _seconds_per_call(pipeline: Pipeline, rows: int, seconds: float) -> float:
    """Return the median time of a call for `rows` images."""
    labels = np.arange(rows) % 10
    end = time.perf_counter() + seconds
    times = []
    while (began := time.perf_counter()) < end:
        pipeline(labels, seeds=range(rows), guidance=GUIDANCE)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _checks(
    direct: tuple[list[float], list[float]], loads: dict[str, list[Load]], everything: list[Load]
) -> list[Check]:
    single, batch = direct
    latency = [load.percentile(50) / 1e3 / time for load, time in zip(loads["one"], single, strict=True)]
    overhead = [load.percentile(50) / 1e3 / time for load, time in zip(loads["batch"], batch, strict=True)]
    # Of what the pipeline makes of a batch, its own gain from batching taken from the same round.
    throughput = [
        load.throughput / (BATCH / time) for load, time in zip(loads["clients"], batch, strict=True)
    ]
    errors = sum(load.errors for load in everything)
    return [
        _ratio(f"{BATCH} images a request, latency / the pipeline's", overhead, "at most", OVERHEAD),
        _ratio("1 client, latency / the pipeline's", latency, "at most", LATENCY),
        _ratio(
            f"{CLIENTS} clients, throughput / the pipeline's in batches of {BATCH}",
            throughput,
            "at least",
            THROUGHPUT,
        ),
        Check("requests that failed", float(errors), "0", errors == 0),
    ]


def _ratio(name: str, ratios: list[float], bound: str, limit: float) -> Check:
    """Return a check of the median of a ratio over the rounds.

    Its interval is their range, which of 7 rounds holds the median at 98 %.
    """
    holds: Callable[[float], bool] = limit.__ge__ if bound == "at most" else limit.__le__
    middle = statistics.median(ratios)
    return Check(name, middle, f"{bound} {limit:g}", holds(middle), (min(ratios), max(ratios)))
