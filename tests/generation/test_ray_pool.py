"""Workers of Ray: replaced when they die, with nothing lost and nothing made twice."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.generation.run import RAY_SETTINGS, Workers, generate_images
from flowturbo_trt.generation.worker import FinishedShard, WorkerError
from flowturbo_trt.tests.generation.sets import ROOT, content, small_plan


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    """A cluster with room for two workers, whatever the machine."""
    patch = pytest.MonkeyPatch()
    for name, value in RAY_SETTINGS.items():
        patch.setenv(name, value)
    import ray

    from flowturbo_trt.generation.ray_pool import sigterm_kept

    with sigterm_kept():
        ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()
    patch.undo()


def test_worker_that_is_killed_is_replaced(
    two_cpus: None, tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = small_plan(tiny_bundle, num=400)
    generate_images(plan, tiny_bundle, tmp_path / "whole")
    written: list[int] = []
    killed: list[str] = []

    def on_shard(shard: FinishedShard) -> None:
        written.append(shard.shard)
        if not killed:
            killed.append(shard.worker)
            os.kill(int(shard.worker.split()[-1]), signal.SIGKILL)

    out = tmp_path / "set"
    summary = generate_images(plan, tiny_bundle, out, Workers(2, ray="local"), on_shard=on_shard)
    assert sorted(written) == list(range(80))
    assert content(out) == content(tmp_path / "whole")
    # One of them was killed with half of the shards before it: the rest is not the other one's alone.
    assert len(summary.workers) >= 2
    assert summary.workers[killed[0]] < 80
    assert capfd.readouterr() == ("", "")


def test_handler_of_sigterm_is_put_back(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Ray leaves behind would end a later training with SystemExit, without a checkpoint."""
    from flowturbo_trt.generation import ray_pool

    def start(*arguments: Any, **options: Any) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        raise RuntimeError("no room")

    monkeypatch.setattr(ray_pool.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_pool.ray, "init", start)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(WorkerError, match="no room"):
        generate_images(small_plan(tiny_bundle), tiny_bundle, tmp_path / "set", Workers(1, ray="local"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_error_in_a_worker_is_raised_as_it_is(two_cpus: None, tiny_bundle: Path, tmp_path: Path) -> None:
    plan = replace(small_plan(tiny_bundle), bundle="0" * 64)
    with pytest.raises(WorkerError, match=r"^\S+ on \S+: another bundle \(.*\), expected that of"):
        generate_images(plan, tiny_bundle, tmp_path / "set", Workers(1, ray="local"))


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        (Workers(3, ray="local"), "3 Ray workers of 1 CPUs and 0 GPUs each do not fit, 2 do; ask for fewer"),
        (Workers(2, threads=2, ray="local"), "2 Ray workers of 2 CPUs and 0 GPUs each do not fit, 1 do"),
        (
            Workers(ray="local", gpus_per_worker=0.5),
            "1 Ray workers of 1 CPUs and 0.5 GPUs each do not fit, 0",
        ),
    ],
)
def test_workers_that_do_not_fit(
    two_cpus: None, tiny_bundle: Path, tmp_path: Path, workers: Workers, message: str
) -> None:
    with pytest.raises(WorkerError, match=message):
        generate_images(small_plan(tiny_bundle), tiny_bundle, tmp_path / "set", workers)


def test_number_of_a_gpu_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    plan = small_plan(tiny_bundle, device="cuda", provider="cuda")
    with pytest.raises(WorkerError, match="device cuda:1: Ray chooses the GPUs; leave the number out"):
        generate_images(plan, tiny_bundle, tmp_path / "set", Workers(1, device="cuda:1", ray="local"))


def node(cpus: float, gpus: float = 0, *, alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "expected"),
    [
        ([node(5), node(3)], 2, 0, 3),
        ([node(4), node(4, alive=False)], 1, 0, 4),
        ([node(16, 2), node(16)], 1, 1, 2),
        ([node(3, 4)], 1, 1, 3),
        ([node(16, 1)], 1, 0.1, 10),
        ([node(16, 1)], 1, 1 / 3, 3),
        ([], 1, 0, 0),
    ],
)
def test_room_on_every_node(nodes: list[dict[str, Any]], cpus: int, gpus: float, expected: int) -> None:
    from flowturbo_trt.generation.ray_pool import room

    assert room(nodes, cpus, gpus) == expected


def generate(bundle: Path, out: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run the command as a process."""
    process = [sys.executable, str(ROOT / "flowturbo_trt.py"), "generate", str(bundle), str(out), *words]
    return subprocess.run(process, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("ray", ["--ray", "--ray=auto"])
def test_command_leaves_stdout_to_the_result(
    two_cpus: None, tiny_bundle: Path, tmp_path: Path, ray: str
) -> None:
    """With Ray started for it, or as a guest of the cluster that is there."""
    done = generate(tiny_bundle, tmp_path / "set", "--num", "20", ray, "--workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images_made"] == 20
    assert all(line.startswith("[") for line in done.stderr.splitlines()), done.stderr


def test_cluster_that_is_not_there(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", refuse)
    message = r"^Ray at 10.0.0.1:6379: cannot be reached \(nobody answers\); give the address of a running"
    with pytest.raises(WorkerError, match=message):
        generate_images(
            small_plan(tiny_bundle), tiny_bundle, tmp_path / "set", Workers(1, ray="10.0.0.1:6379")
        )
