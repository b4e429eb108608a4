"""Two real processes train as one would, and neither outlives the other's failure."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flowturbo_trt.tests.training import one_process
from flowturbo_trt.tests.training.one_process import CONFIG, some_cache, some_predictor
from flowturbo_trt.tests.training.runs import checkpoint_steps, rows_recorded, steps_recorded
from flowturbo_trt.training.config import TrainingConfig, TrainingError
from flowturbo_trt.training.distributed import Group, choose_device, joined
from flowturbo_trt.training.train_refiner import train_refiner

# What a process that waits for ever would need; the tests end in seconds.
PATIENCE = 60.0
Processes = Callable[..., list[tuple[int, str]]]


def start(rank: int, port: int, log: Path, *words: object) -> None:
    """Be the process of a rank, as a launcher would have started it."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with log.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
        one_process.main(*words)  # type: ignore[arg-type]


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    """Give a function that runs two processes and returns each one's exit status and output."""
    context = multiprocessing.get_context("forkserver")
    # They are forked from one that has imported torch, and so start at once.
    context.set_forkserver_preload([one_process.__name__, "torch._dynamo"])

    def run(*words: object) -> list[tuple[int, str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        logs = [tmp_path / f"process-{rank}.log" for rank in range(2)]
        started = [context.Process(target=start, args=(rank, port, logs[rank], *words)) for rank in range(2)]
        for process in started:
            process.start()
        deadline = time.monotonic() + PATIENCE
        for process in started:
            process.join(max(0, deadline - time.monotonic()))
        hung = [process for process in started if process.exitcode is None]
        for process in hung:
            process.kill()
        assert not hung
        statuses = [process.exitcode if process.exitcode is not None else -1 for process in started]
        return [(status, log.read_text()) for status, log in zip(statuses, logs, strict=True)]

    return run


@pytest.mark.parametrize("on_policy", ["", "H1R2 P1R1:single"])
def test_two_processes_are_one(tmp_path: Path, processes: Processes, on_policy: str) -> None:
    """Same losses and same weights, with two parts each and clipped, as in one process and one part."""
    assert processes(tmp_path / "two", None, 1, on_policy) == [(0, ""), (0, "")]
    config = replace(CONFIG, accumulate=1, on_policy=on_policy)
    path = train_refiner(some_predictor(), None if on_policy else some_cache(), config, tmp_path / "one")
    found, expected = rows_recorded(tmp_path / "two"), rows_recorded(tmp_path / "one")
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "gradient_norm"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in expected], rel=1e-5)
    assert expected[0]["gradient_norm"] > CONFIG.clip
    weights, of_one = load_file(tmp_path / "two" / "refiner.safetensors"), load_file(path)
    assert weights.keys() == of_one.keys()
    for name, tensor in of_one.items():
        # The bias of the keys has no gradient but rounding, which Adam enlarges.
        if name.endswith("attn.qkv.bias"):
            weights[name][16:32] = tensor[16:32]
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-6)


def test_one_process_goes_on_from_two(tmp_path: Path, processes: Processes) -> None:
    assert processes(tmp_path, "interrupt", 0)[0] == (130, "interrupted\n")
    assert steps_recorded(tmp_path) == [1, 2]
    train_refiner(some_predictor(), some_cache(), CONFIG, tmp_path)
    assert steps_recorded(tmp_path) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("rank", [0, 1])
def test_process_that_fails_ends_the_other(tmp_path: Path, processes: Processes, rank: int) -> None:
    """The first process says which one it was, in one line, and the other says nothing."""
    (first, told), (second, silence) = processes(tmp_path, "fail", rank)
    whose = "process 1: " if rank else ""
    assert (first, told) == (1, f"error: {whose}the disk of this process is gone\n")
    assert second == 1
    assert rank == 0 or silence == ""


def test_process_that_vanishes_ends_the_other(tmp_path: Path, processes: Processes) -> None:
    (first, told), (second, _) = processes(tmp_path, "vanish", 1)
    assert (first, second) == (1, -9)
    assert told == "error: another process of the run is gone; its own output may say why\n"


def test_first_process_that_vanishes_ends_the_other(tmp_path: Path, processes: Processes) -> None:
    """Nobody else can tell of it."""
    (first, _), (second, told) = processes(tmp_path, "vanish", 0)
    assert (first, second) == (-9, 1)
    assert told.splitlines()[-1] == "error: process 0: ended without a word"


def test_interrupt_of_one_process_saves(tmp_path: Path, processes: Processes) -> None:
    """As when a scheduler ends all and the second is the faster."""
    assert processes(tmp_path, "interrupt", 1) == [(130, "interrupted\n"), (130, "")]
    assert checkpoint_steps(tmp_path) == [2]


def test_loss_of_one_process_that_is_not_finite(tmp_path: Path, processes: Processes) -> None:
    (first, told), (second, silence) = processes(tmp_path, "nan", 1)
    assert (first, second, silence) == (1, 1, "")
    assert told == "error: the loss is nan at step 2; the last checkpoint is kept\n"


def test_rows_are_shared_out() -> None:
    config = TrainingConfig(batch=12, accumulate=2)
    cpu = torch.device("cpu")
    groups = [Group(cpu, rank, 3) for rank in range(3)]
    assert [group.rows(config) for group in groups] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    assert [group.leads for group in groups] == [True, False, False]
    message = r"batch is 12, expected a multiple of 10 \(processes 5 × accumulate 2\)"
    with pytest.raises(TrainingError, match=message):
        Group(cpu, 0, 5).rows(config)


def test_one_process_is_a_group_of_its_own() -> None:
    with joined("cpu") as group:
        assert (group.rank, group.size, group.device.type) == (0, 1, "cpu")


@pytest.mark.parametrize(
    ("name", "gpus", "local_rank", "expected"),
    [
        ("cpu", 0, 0, "cpu"),
        ("cpu", 2, 1, "cpu"),
        ("auto", 0, 3, "cpu"),
        ("auto", 2, 1, "cuda:1"),
        ("cuda", 2, 0, "cuda:0"),
    ],
)
def test_device(
    gpus_seen: Callable[[int], None], name: str, gpus: int, local_rank: int, expected: str
) -> None:
    gpus_seen(gpus)
    assert str(choose_device(name, local_rank)) == expected


@pytest.mark.parametrize(
    ("name", "gpus", "message"),
    [
        ("tpu", 1, "device is 'tpu', expected auto, cpu, cuda"),
        ("cuda", 0, "device is cuda, but this torch sees no GPU"),
        ("cuda", 1, "process 1 of this machine has no GPU of its own; start at most 1 here"),
    ],
)
def test_device_that_is_not_there(
    gpus_seen: Callable[[int], None], name: str, gpus: int, message: str
) -> None:
    gpus_seen(gpus)
    with pytest.raises(TrainingError, match=message):
        choose_device(name, 1)


@pytest.fixture
def gpus_seen(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Give a function that has torch see some GPUs."""

    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    return see


def test_processes_that_were_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(TrainingError, match=r"the 2 processes .* start them with torchrun"), joined("cpu"):
        pass
