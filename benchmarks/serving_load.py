"""Loads on a Triton server: closed and open loop, through gRPC, from a process of their own.

`python -m flowturbo_trt.benchmarks.serving_load ADDRESS MODEL --clients 16` prints one JSON document.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from random import Random

import click
import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

CLASSES = 10
GUIDANCE = 1.5
WARM_UP_SECONDS = 1.0


@dataclass(frozen=True)
class Load:
    """What a load met: latencies in seconds, ascending, of the requests that were answered."""

    latencies: tuple[float, ...]
    errors: int
    seconds: float
    rows: int

    @property
    def throughput(self) -> float:
        """Images per second."""
        return len(self.latencies) * self.rows / self.seconds

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latencies in milliseconds."""
        return float(np.percentile(self.latencies, percent)) * 1e3

    def figures(self) -> dict[str, float | int]:
        """Return what a result file says of it."""
        return {
            "requests": len(self.latencies),
            "errors": self.errors,
            "images_per_second": self.throughput,
            "p50_ms": self.percentile(50),
            "p99_ms": self.percentile(99),
        }


def closed_loop(address: str, model: str, *, clients: int, seconds: float, rows: int = 1) -> Load:
    """Let clients send a request of `rows` images each as soon as their last one is answered."""
    return _in_process(address, model, "--clients", clients, "--seconds", seconds, "--rows", rows)


def open_loop(address: str, model: str, *, rate: float, seconds: float, seed: int = 0) -> Load:
    """Send requests of one image at random times, `rate` a second, whether or not others are answered.

    A latency counts from when the request was due: a client that is late does not hide a queue.
    """
    return _in_process(address, model, "--rate", rate, "--seconds", seconds, "--seed", seed)


def _in_process(*words: object) -> Load:
    """Run a load in a process of its own, which shares nothing with who measures."""
    command = [sys.executable, "-m", "flowturbo_trt.benchmarks.serving_load", *map(str, words)]
    document = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return Load(**{**document, "latencies": tuple(document["latencies"])})


def make_inputs(rows: int, number: int) -> list[InferInput]:
    """Return the inputs of a request: labels and seeds that differ from request to request."""
    seeds = np.arange(rows, dtype=np.uint64)[:, None] + np.uint64(number * rows)
    values = {
        "label": ("INT64", (seeds % CLASSES).astype(np.int64)),
        "seed": ("UINT64", seeds),
        "guidance": ("FP32", np.full((rows, 1), GUIDANCE, dtype=np.float32)),
    }
    inputs = []
    for name, (dtype, array) in values.items():
        given = InferInput(name, list(array.shape), dtype)
        given.set_data_from_numpy(array)
        inputs.append(given)
    return inputs


@dataclass
class _Counts:
    """What has come back so far."""

    latencies: list[float]
    errors: int = 0


class _Client:
    """One connection, and what it met."""

    def __init__(self, connection: InferenceServerClient, model: str, rows: int) -> None:
        self._connection = connection
        self._model = model
        self._rows = rows
        self._sent = 0
        self.counts = _Counts([])

    async def request(self, due: float) -> None:
        self._sent += 1
        try:
            await self._connection.infer(self._model, make_inputs(self._rows, self._sent))
        except InferenceServerException:
            self.counts.errors += 1
        else:
            self.counts.latencies.append(time.perf_counter() - due)

    async def closed(self, clients: int, seconds: float) -> None:
        end = time.perf_counter() + seconds

        async def send() -> None:
            while (now := time.perf_counter()) < end:
                await self.request(now)

        await asyncio.gather(*(send() for _ in range(clients)))

    async def open(self, rate: float, seconds: float, seed: int) -> None:
        async with asyncio.TaskGroup() as group:
            async for due in _arrivals(rate, seconds, Random(seed)):
                group.create_task(self.request(due))


async def _arrivals(rate: float, seconds: float, random: Random) -> AsyncIterator[float]:
    """Yield the times of a Poisson process, each when it has come."""
    due, end = time.perf_counter(), time.perf_counter() + seconds
    while (due := due + random.expovariate(rate)) < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        yield due


async def _run(
    address: str, model: str, clients: int, rate: float | None, seconds: float, rows: int, seed: int
) -> Load:
    async with InferenceServerClient(address) as connection:
        await _Client(connection, model, rows).closed(clients, WARM_UP_SECONDS)
        client = _Client(connection, model, rows)
        started = time.perf_counter()
        if rate is None:
            await client.closed(clients, seconds)
        else:
            await client.open(rate, seconds, seed)
        elapsed = time.perf_counter() - started
    return Load(tuple(sorted(client.counts.latencies)), client.counts.errors, elapsed, rows)


@click.command()
@click.argument("address")
@click.argument("model")
@click.option("--clients", type=click.IntRange(1), default=1, help="Closed loop of this many clients.")
@click.option("--rate", type=float, help="Open loop of this many requests a second instead.")
@click.option("--seconds", type=float, default=10.0, show_default=True)
@click.option("--rows", type=click.IntRange(1), default=1, help="Images per request.")
@click.option("--seed", type=int, default=0)
def main(
    address: str, model: str, clients: int, rate: float | None, seconds: float, rows: int, seed: int
) -> None:
    """Put a load on MODEL of the server at ADDRESS, and print what it met as JSON."""
    load = asyncio.run(_run(address, model, clients, rate, seconds, rows, seed))
    click.echo(json.dumps(asdict(load)))


def pooled(loads: Sequence[Load]) -> Load:
    """Return several loads as one."""
    return Load(
        tuple(sorted(latency for load in loads for latency in load.latencies)),
        sum(load.errors for load in loads),
        sum(load.seconds for load in loads),
        loads[0].rows,
    )


if __name__ == "__main__":
    main()
