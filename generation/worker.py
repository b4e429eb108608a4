"""What makes shards: a pipeline of its own in a process of its own, or in the caller's."""

import os
import socket
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.store import read_manifest
from flowturbo_trt.generation.identity import identity
from flowturbo_trt.generation.options import installed_software
from flowturbo_trt.generation.plan import GenerationError, GenerationPlan
from flowturbo_trt.generation.shards import encode_shard
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.errors import FlowTurboError

# One is being made while the one before is copied out and encoded.
REQUESTS_AT_ONCE = 2


class WorkerError(GenerationError):
    """A worker that ended before its time, cannot be had, or is not like the others."""


@dataclass(frozen=True)
class Job:
    """What a worker is told: the plan, where the bundle is, and what to run its engines on.

    `device` is cpu, cuda or cuda:N; `threads` bounds the CPU threads of an engine (0: all cores).
    """

    plan: GenerationPlan
    bundle: Path
    device: str
    threads: int


@dataclass(frozen=True)
class FinishedShard:
    """A shard with its files' content by path (shards.encode_shard), and who made it."""

    shard: int
    files: dict[str, bytes]
    worker: str


class MakeShards(Protocol):
    """A way to make shards, in any order; `on_images` is told of images as they are made."""

    def __call__(
        self, job: Job, shards: Sequence[int], on_images: Callable[[int], None]
    ) -> Generator[FinishedShard, None, None]: ...


class ShardMaker:
    """Makes shards one after the other, with one pipeline that is loaded for the first of them."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @cached_property
    def _pipeline(self) -> Pipeline:
        plan = self._job.plan
        check_alike(self._job)
        return Pipeline.load(
            self._job.bundle,
            backend=plan.backend,
            device=self._job.device,
            threads=self._job.threads,
            provider=plan.provider,
        )

    def make(self, shard: int, on_images: Callable[[int], None] = lambda count: None) -> FinishedShard:
        """Make a shard; raises WorkerError where this machine has another bundle or other software."""
        plan = self._job.plan
        # Before the threads want it.
        pipeline = self._pipeline
        images = np.empty((len(plan.indices(shard)), *plan.image, 3), dtype=np.uint8)
        first = plan.indices(shard).start

        def run(batch: range) -> range:
            images[batch.start - first : batch.stop - first] = _images(pipeline, plan, batch)
            return batch

        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
            for batch in threads.map(run, plan.batches(shard)):
                on_images(len(batch))
        return FinishedShard(shard, encode_shard(plan, shard, images), own_name())


def _images(pipeline: Pipeline, plan: GenerationPlan, batch: range) -> NDArray[np.uint8]:
    return pipeline(
        [plan.label_of(index) for index in batch],
        seeds=[plan.seed_of(index) for index in batch],
        guidance=plan.guidance,
        schedule=plan.schedule,
    )


def check_alike(job: Job) -> None:
    """Raise WorkerError unless bundle and software here are those of the plan."""
    plan, where = job.plan, socket.gethostname()
    try:
        found = identity(read_manifest(job.bundle), plan.schedule)
        told = f"another bundle ({found[:12]})"
    except FlowTurboError as error:
        found, told = None, f"no bundle to make them from ({error})"
    if found != plan.bundle:
        raise WorkerError(
            f"{job.bundle} on {where}: {told}, expected that of the plan ({plan.bundle[:12]}); "
            "put the same bundle at the same path on every machine"
        )
    installed = installed_software(plan.backend, plan.format)
    for name in plan.software | installed:
        if installed.get(name) != plan.software.get(name):
            raise WorkerError(
                f"{where}: has {name} {installed.get(name)}, the plan has {plan.software.get(name)}; "
                "install the same version on every machine"
            )


def own_name() -> str:
    """Return what to call this process."""
    return f"{socket.gethostname()} pid {os.getpid()}"
