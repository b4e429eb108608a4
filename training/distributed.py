"""The processes of a run: which rows each takes, and what they tell each other.

Started by torchrun, each process takes its rows of every batch; gradients are averaged by torch's
DistributedDataParallel. Started without, one process is the whole group.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from flowturbo_trt.training.config import TrainingConfig, TrainingError
from flowturbo_trt.training.failures import FailureBoard, Watch

DEVICES = ("auto", "cpu", "cuda")


class Group:
    """Process `rank` of the `size` that train together, with a device of its own."""

    def __init__(
        self, device: torch.device, rank: int = 0, size: int = 1, watch: Watch | None = None
    ) -> None:
        self.device = device
        self.rank = rank
        self.size = size
        self._watch = watch

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes files and talks."""
        return self.rank == 0

    def rows(self, config: TrainingConfig) -> slice:
        """Return this process's rows of a batch; raises TrainingError where they cannot be equally many."""
        if config.batch % (self.size * config.accumulate):
            raise TrainingError(
                f"batch is {config.batch}, expected a multiple of {self.size * config.accumulate} "
                f"(processes {self.size} × accumulate {config.accumulate})"
            )
        count = config.batch // self.size
        return slice(self.rank * count, (self.rank + 1) * count)

    def share(self, network: nn.Module) -> nn.Module:
        """Wrap a network so that its gradients become the mean over all processes."""
        if self.size == 1:
            return network
        devices = [self.device.index] if self.device.type == "cuda" else None
        with self.waiting():
            return DistributedDataParallel(network, device_ids=devices)

    def last_part(self, network: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Put the mean over processes off until the last part of a batch."""
        if isinstance(network, DistributedDataParallel) and not last:
            return network.no_sync()
        return nullcontext()

    def waiting(self) -> AbstractContextManager[None]:
        """Mark what waits for other processes, so that a failure of theirs ends it (see Watch.waiting)."""
        return nullcontext() if self._watch is None else self._watch.waiting()

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a scalar over all processes; to be called within `waiting`."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value / self.size

    def agree(self, step: int) -> None:
        """Wait for all processes; raises TrainingError unless they are at the same step."""
        if self.size == 1:
            return
        steps: list[int] = [0] * self.size
        with self.waiting():
            dist.all_gather_object(steps, step)
        if len(set(steps)) > 1:
            raise TrainingError(
                f"the processes found checkpoints of steps {', '.join(map(str, steps))}; the folder must be "
                "on a file system that all machines share"
            )


@contextmanager
def joined(device: str, *, quiet: bool = True) -> Iterator[Group]:
    """Join the processes that torchrun started, or be alone; give the group.

    An error in the block ends all processes. The first one tells it whichever it happened in: with
    `quiet`, the others exit without a word.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if size == 1:
        yield Group(chosen)
        return
    store, rank = _connect(chosen, size)
    board = FailureBoard(store, rank)
    watch = Watch(board, rank)
    try:
        yield Group(chosen, rank, size, watch)
        with watch.waiting():
            dist.barrier()
    except BaseException as error:
        failure = board.post(error)
        if rank == 0:
            board.linger(size)
        if rank and quiet and failure is not None:
            raise SystemExit(130 if failure.interrupted else 1) from error
        # A launcher interrupts the others when one fails: that one's reason counts.
        if failure is not None and failure.rank != rank and isinstance(error, KeyboardInterrupt):
            raise failure.as_error() from error
        raise
    finally:
        watch.end()
    dist.destroy_process_group()


def _connect(device: torch.device, size: int) -> tuple[Store, int]:
    try:
        store, rank, _ = next(rendezvous("env://"))
        on_gpu = device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            device_id=device if on_gpu else None,
        )
    except (ValueError, RuntimeError) as error:
        raise TrainingError(
            f"the {size} processes of the run cannot be joined ({error}); start them with torchrun"
        ) from error
    return store, rank


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device of a process: cpu, or the GPU that is its own; raises TrainingError.

    `auto` is a GPU where torch sees one.
    """
    if name not in DEVICES:
        raise TrainingError(f"device is {name!r}, expected {', '.join(DEVICES)}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cuda" and count == 0:
        raise TrainingError("device is cuda, but this torch sees no GPU; install one with CUDA, or use cpu")
    if name == "cpu" or count == 0:
        return torch.device("cpu")
    if local_rank >= count:
        raise TrainingError(
            f"process {local_rank} of this machine has no GPU of its own; start at most {count} here"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
