"""Generating a set of images: what is missing of it is made and written, by whatever workers there are."""

import contextlib
import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from flowturbo_trt.bundle.environment import cores
from flowturbo_trt.generation.folder import begin, check_plan, held
from flowturbo_trt.generation.local import LocalProcesses, make_here
from flowturbo_trt.generation.options import check_disk
from flowturbo_trt.generation.plan import GenerationError, GenerationPlan
from flowturbo_trt.generation.shards import finished_shards, remove_partial, write_files
from flowturbo_trt.generation.worker import FinishedShard, Job, MakeShards, WorkerError

# Read by Ray when it is imported: otherwise it reports its use to its makers, and prints what befalls
# workers on stdout, where results belong.
RAY_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Workers:
    """Who makes the images: this changes nothing of them.

    `count` workers (None: this process alone, or as many as a Ray cluster has room for), each with
    `threads` CPU threads (0: its share of the cores); `device` as of Pipeline.load. With `ray` they are
    Ray's: on the cluster of that address, or `local` for one that is started here; each is given
    `gpus_per_worker` (None: one if the plan's device is a GPU).
    """

    count: int | None = None
    threads: int = 0
    device: str | None = None
    ray: str | None = None
    gpus_per_worker: float | None = None


@dataclass
class Summary:
    """What a run did: images and shards found, images made, by whom (shards by worker), and the time."""

    images: int
    shards: int
    images_found: int
    shards_found: int
    seconds: float = 0.0
    workers: Counter[str] = field(default_factory=Counter)

    @property
    def images_made(self) -> int:
        return self.images - self.images_found

    @property
    def images_per_second(self) -> float:
        return self.images_made / self.seconds if self.seconds else 0.0


def generate_images(
    plan: GenerationPlan,
    bundle: Path,
    out: Path,
    workers: Workers | None = None,
    progress: Progress = lambda what, done, total: None,
    on_shard: Callable[[FinishedShard], None] = lambda finished: None,
) -> Summary:
    """Make what is missing of a set of images in the folder `out`, which afterwards is as if made at once.

    Whatever ends a run, `out` holds whole shards, and the next run goes on from them. `progress` is told
    of images made, and how many are to be; `on_shard` of each shard once it is written. Raises
    GenerationError for a folder that holds anything else or another plan's images, when another run is
    at work in it, when a worker fails and when the disk is full.
    """
    make, job = _choose(plan, bundle, workers or Workers())
    with held(out):
        check_plan(plan, out)
        finished = finished_shards(out, plan)
        found = sum(len(plan.indices(shard)) for shard in finished)
        check_disk(plan, plan.num - found, out)
        begin(plan, out)
        missing = [shard for shard in range(plan.shards) if shard not in finished]
        summary = Summary(plan.num, plan.shards, found, len(finished))
        started = time.perf_counter()
        if missing:
            told = _Meter(plan.num - found, progress)
            with _explained(out, plan), contextlib.closing(make(job, missing, told)) as made:
                _write_all(made, out, summary, on_shard)
        remove_partial(out)
        summary.seconds = time.perf_counter() - started
    return summary


def _choose(plan: GenerationPlan, bundle: Path, workers: Workers) -> tuple[MakeShards, Job]:
    """Return who makes shards, and what they are told."""
    device = workers.device or plan.device
    if device.partition(":")[0] != plan.device:
        raise WorkerError(f"device {device} is not the plan's, {plan.device}; give the same to both")
    job = Job(plan, bundle.absolute(), device, workers.threads)
    if workers.ray is not None:
        return _ray_workers(plan, workers, workers.ray), job
    if workers.count in (None, 1):
        return make_here, job
    assert workers.count is not None
    threads = workers.threads or max(1, cores() // workers.count)
    return LocalProcesses(workers.count), Job(plan, job.bundle, device, threads)


def _ray_workers(plan: GenerationPlan, workers: Workers, address: str) -> MakeShards:
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        from flowturbo_trt.generation.ray_pool import RayWorkers
    except ModuleNotFoundError as error:
        raise WorkerError(
            f"--ray needs {error.name}, which the base install leaves out; pip install 'flowturbo_trt[ray]'"
        ) from error
    gpus = workers.gpus_per_worker
    return RayWorkers(address, workers.count, float(plan.device == "cuda") if gpus is None else gpus)


def _write_all(
    made: Iterable[FinishedShard], out: Path, summary: Summary, on_shard: Callable[[FinishedShard], None]
) -> None:
    """Write shards in a thread of its own, one at a time, while the next are being made."""

    def write(shard: FinishedShard) -> None:
        write_files(out, shard.files)
        summary.workers[shard.worker] += 1
        on_shard(shard)

    with ThreadPoolExecutor(1) as thread:
        last: Future[None] | None = None
        for shard in made:
            if last is not None:
                last.result()
            last = thread.submit(write, shard)
        if last is not None:
            last.result()


class _Meter:
    """Tells of images made and of the pace."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total = total
        self._progress = progress
        self._done = 0
        self._started = time.perf_counter()
        progress("starting", 0, total)

    def __call__(self, count: int) -> None:
        self._done += count
        pace = self._done / (time.perf_counter() - self._started)
        self._progress(f"{pace:.1f} images/s", self._done, self._total)


@contextlib.contextmanager
def _explained(out: Path, plan: GenerationPlan) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        there = sum(len(plan.indices(shard)) for shard in finished_shards(out, plan))
        raise GenerationError(
            f"{out}: the disk is full, with {there} of {plan.num} images there; free some space and run the "
            "same command again, and it goes on"
        ) from error
