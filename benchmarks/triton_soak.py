"""Ten thousand mixed requests to a Triton server: every image compared, none lost, memory flat."""

import statistics
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from flowturbo_trt.benchmarks.serving_requests import Answers, Row, ask_grpc, ask_http, mixed_requests
from flowturbo_trt.benchmarks.triton_server import TritonServer, start
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.examples.digits.bundle import digits_options
from flowturbo_trt.export.build import build
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.serving.triton.options import ModelOptions
from flowturbo_trt.serving.triton.repository import write_repository

MODEL = "digits"
REQUESTS = 10_000
CLIENTS = 8
SCHEDULES = ("H1P5R3", "H1P1R1")
# Memory is looked at this often; what comes before WARM_UP of all requests does not count.
LOOKS = 100
WARM_UP = 0.2
GROWTH = 0.05


@dataclass
class Outcome:
    """What came of the requests so far."""

    answered: int = 0
    images: int = 0
    wrong: int = 0
    failed: int = 0
    memory: list[int] = field(default_factory=list)


def measure(folder: Path, requests: int = REQUESTS) -> tuple[dict[str, Any], list[Check]]:
    """Send mixed requests from several clients at once, half of them over HTTP, and compare every image."""
    options = replace(digits_options(), batches=(1, 8), variants=("guided", "unguided"), schedules=SCHEDULES)
    bundle = build(options, folder / MODEL).path
    write_repository(bundle, folder / "models", MODEL, ModelOptions(schedules=SCHEDULES, threads=1))
    drawn = mixed_requests(requests, SCHEDULES)
    with Pipeline.load(bundle, threads=1) as pipeline:
        answers = Answers(pipeline)
        for rows in drawn:
            answers(rows)
    with start(folder / "models") as server:
        outcome = soak(server, drawn, answers)
    settled = outcome.memory[round(len(outcome.memory) * WARM_UP) :]
    middle = statistics.median(settled)
    growth = max(abs(size / middle - 1) for size in settled)
    figures = {
        "precision": "fp32",
        "backend": "onnxruntime",
        "schedule": " and ".join(SCHEDULES),
        "clients": CLIENTS,
        "requests": requests,
        "answered": outcome.answered,
        "images": outcome.images,
        "memory_megabytes": [round(size / 1e6, 1) for size in outcome.memory],
    }
    counts = {
        f"images that differ from the pipeline's, of {outcome.images}": outcome.wrong,
        f"requests that failed, of {requests}": outcome.failed,
        "requests that were lost": requests - outcome.answered - outcome.failed,
    }
    memory = "server's memory after the warm-up, largest distance from its median"
    return figures, [
        *(Check(name, float(count), "0", count == 0) for name, count in counts.items()),
        Check(memory, growth, f"at most {GROWTH:g}", growth <= GROWTH),
    ]


def soak(server: TritonServer, requests: Sequence[list[Row]], answers: Answers) -> Outcome:
    """Send requests from CLIENTS threads, and look at the server's memory LOOKS times meanwhile."""
    outcome, lock = Outcome(), threading.Lock()
    queue: Iterator[list[Row]] = iter(requests)
    every = max(1, len(requests) // LOOKS)

    def work(client: int) -> None:
        module, ask = (tritonclient.grpc, ask_grpc) if client % 2 else (tritonclient.http, ask_http)
        with module.InferenceServerClient(server.grpc if client % 2 else server.http) as connection:
            while True:
                with lock:
                    rows = next(queue, None)
                if rows is None:
                    return
                try:
                    wrong = int(np.any(ask(connection, MODEL, rows) != answers(rows), axis=(1, 2, 3)).sum())
                except InferenceServerException:
                    wrong = None
                note(rows, wrong)

    def note(rows: list[Row], wrong: int | None) -> None:
        with lock:
            if wrong is None:
                outcome.failed += 1
                return
            outcome.answered += 1
            outcome.images += len(rows)
            outcome.wrong += wrong
            if outcome.answered % every == 0:
                outcome.memory.append(server.resident_bytes())

    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(work, client) for client in range(CLIENTS)]:
            done.result()
    return outcome
