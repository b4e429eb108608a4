"""Shards made on this machine: in this process, or in several."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection

from flowturbo_trt.generation.worker import FinishedShard, Job, ShardMaker, WorkerError

# Beside those being made: the next of the first worker to finish.
WAITING = 1


def make_here(
    job: Job, shards: Sequence[int], on_images: Callable[[int], None]
) -> Generator[FinishedShard, None, None]:
    """Make shards in this process (worker.MakeShards)."""
    maker = ShardMaker(job)
    for shard in shards:
        yield maker.make(shard, on_images)


@dataclass(frozen=True)
class LocalProcesses:
    """Makes shards in a number of processes of this machine (worker.MakeShards)."""

    workers: int

    def __call__(
        self, job: Job, shards: Sequence[int], on_images: Callable[[int], None]
    ) -> Generator[FinishedShard, None, None]:
        """Raise WorkerError when a process has ended suddenly: what is missing is made by the next run."""
        # A forked process would share the state of the inference libraries.
        context = multiprocessing.get_context("spawn")
        theirs, ours = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(self.workers, context, _start, (job, theirs))
        try:
            for finished in _in_turn(pool, shards, self.workers + WAITING):
                on_images(len(job.plan.indices(finished.shard)))
                yield finished
        except BrokenProcessPool as error:
            raise WorkerError(
                "a worker process ended suddenly, killed or out of memory; run the same command again, with "
                "fewer workers if need be, and it goes on"
            ) from error
        finally:
            # The processes end with it, whatever they are at.
            ours.close()
            pool.shutdown(cancel_futures=True)
            theirs.close()


def _in_turn(pool: ProcessPoolExecutor, shards: Sequence[int], at_once: int) -> Iterator[FinishedShard]:
    """Yield shards as they are finished, with no more than `at_once` asked for or not yet taken."""
    waiting = iter(shards)
    asked: set[Future[FinishedShard]] = set()
    while True:
        while len(asked) < at_once and (shard := next(waiting, None)) is not None:
            asked.add(pool.submit(_make, shard))
        if not asked:
            return
        done, asked = wait(asked, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


_maker: ShardMaker


def _start(job: Job, parent: Connection) -> None:
    """Prepare a worker process: it ends with the run that started it, and leaves interrupts to that."""
    global _maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _maker = ShardMaker(job)


def _end_with(parent: Connection) -> None:
    """End this process when the other end of the pipe is closed, be it by the death of its process."""
    try:
        parent.recv()
    finally:
        os._exit(1)


def _make(shard: int) -> FinishedShard:
    return _maker.make(shard)
