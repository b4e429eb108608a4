"""Shards made by workers of Ray, on one machine or many."""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from flowturbo_trt.generation.worker import FinishedShard, Job, ShardMaker, WorkerError
from flowturbo_trt.sampling.errors import FlowTurboError

LOCAL = "local"
# A shard that has ended so many workers one after the other is not given to another.
ATTEMPTS = 4


@dataclass(frozen=True)
class RayWorkers:
    """Makes shards with workers of Ray (worker.MakeShards).

    `address` is a cluster's, or `local` for one that is started here and ends with the run; `count` None
    is as many workers as there is room for. A worker has the job's threads as CPUs (0: one).
    """

    address: str
    count: int | None
    gpus_per_worker: float

    def __call__(
        self, job: Job, shards: Sequence[int], on_images: Callable[[int], None]
    ) -> Generator[FinishedShard, None, None]:
        """Raise WorkerError where Ray or room is lacking, or a shard has ended ATTEMPTS workers.

        A worker that dies is replaced and makes its shard again; its result is taken once.
        """
        if ":" in job.device:
            raise WorkerError(f"device {job.device}: Ray chooses the GPUs; leave the number out")
        threads = job.threads or 1
        job = Job(job.plan, job.bundle, job.device, threads)
        with sigterm_kept(), _connected(self.address):
            count = min(self._count(threads), len(shards))
            remote = ray.remote(ShardMaker).options(
                num_cpus=threads,
                num_gpus=self.gpus_per_worker,
                max_restarts=-1,
                max_task_retries=ATTEMPTS - 1,
            )
            workers: list[Any] = [remote.remote(job) for _ in range(count)]
            try:
                for finished in _in_turn(workers, shards):
                    on_images(len(job.plan.indices(finished.shard)))
                    yield finished
            finally:
                for worker in workers:
                    ray.kill(worker)

    def _count(self, threads: int) -> int:
        # Ray leaves it untyped.
        nodes: Any = ray.nodes
        most = room(nodes(), threads, self.gpus_per_worker)
        wanted = self.count or max(1, most)
        if wanted > most:
            raise WorkerError(
                f"{wanted} Ray workers of {threads} CPUs and {self.gpus_per_worker:g} GPUs each do not fit, "
                f"{most} do; ask for fewer or smaller ones, or add machines to the cluster"
            )
        return wanted


def room(nodes: Sequence[Mapping[str, Any]], cpus: int, gpus: float) -> int:
    """Return how many workers of so many CPUs and GPUs the nodes (ray.nodes()) have room for."""
    total = 0
    for node in nodes:
        if node["Alive"]:
            resources = node["Resources"]
            fit = int(resources.get("CPU", 0) / cpus)
            # A third of a GPU fits three times, whatever the rounding.
            total += min(fit, int(resources.get("GPU", 0) / gpus + 1e-6)) if gpus else fit
    return total


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connect to Ray, unless the process is; what was started for this is shut down."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise WorkerError(
            f"Ray at {address}: cannot be reached ({error}); give the address of a running cluster, or "
            "none to start Ray here"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def sigterm_kept() -> Iterator[None]:
    """Put the handler of SIGTERM back: Ray sets one of its own when it starts, and leaves it there."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _in_turn(workers: Sequence[Any], shards: Sequence[int]) -> Iterator[FinishedShard]:
    """Yield shards as they are finished; a worker gets its next one when its last is fetched."""
    waiting = iter(shards)
    asked: dict[Any, Any] = {}

    def ask(worker: Any) -> None:
        if (shard := next(waiting, None)) is not None:
            asked[worker.make.remote(shard)] = worker

    for worker in workers:
        ask(worker)
    while asked:
        (reference,), _ = ray.wait(list(asked), num_returns=1)
        worker = asked.pop(reference)
        finished = _fetch(reference)
        ask(worker)
        yield finished


def _fetch(reference: Any) -> FinishedShard:
    try:
        finished: FinishedShard = ray.get(reference)
    except RayTaskError as error:
        # As it was raised in the worker, without the report of the journey.
        if isinstance(error.cause, FlowTurboError):
            raise error.cause from None
        raise
    except RayError as error:
        raise WorkerError(
            f"a Ray worker was lost {ATTEMPTS} times at one shard, out of memory or with its machine "
            f"({type(error).__name__}); run the same command again, and it goes on"
        ) from error
    return finished
