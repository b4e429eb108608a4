"""Worker processes: they end with their run, and it ends with one of them."""

import os
import signal
import time
from pathlib import Path

import pytest

from flowturbo_trt.generation.run import Workers, generate_images
from flowturbo_trt.generation.worker import FinishedShard, WorkerError
from flowturbo_trt.tests.generation.sets import command, content, small_plan, wait_for_shards


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks processes up in /proc")
def test_workers_end_with_a_run_that_is_killed(tiny_bundle: Path, tmp_path: Path) -> None:
    process = command(tiny_bundle, tmp_path / "set", "--workers", "2", "--num", "100000")
    wait_for_shards(tmp_path / "set", 2)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(map(is_alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_worker_that_is_killed(tiny_bundle: Path, tmp_path: Path) -> None:
    """The run ends and says so; the next one goes on."""
    plan = small_plan(tiny_bundle, num=400)
    generate_images(plan, tiny_bundle, tmp_path / "whole")

    killed: list[str] = []

    def kill_first(shard: FinishedShard) -> None:
        if not killed:
            killed.append(shard.worker)
            os.kill(int(shard.worker.split()[-1]), signal.SIGKILL)

    with pytest.raises(WorkerError, match=r"a worker process ended suddenly, .* run the same command again"):
        generate_images(plan, tiny_bundle, tmp_path / "set", Workers(2), on_shard=kill_first)
    assert 0 < generate_images(plan, tiny_bundle, tmp_path / "set").images_found < 400
    assert content(tmp_path / "set") == content(tmp_path / "whole")
