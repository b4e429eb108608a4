"""Sets of images of the tiny networks, and what is in their folders."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flowturbo_trt.generation.options import GenerationOptions, make_plan
from flowturbo_trt.generation.plan import GenerationPlan
from flowturbo_trt.generation.worker import FinishedShard

ROOT = Path(__file__).parents[2]

# The last shard and its last batch are smaller than the others.
SMALL = GenerationOptions(num=23, schedule="E2", shard_size=5, batch=2)


def small_plan(bundle: Path, **changed: object) -> GenerationPlan:
    return make_plan(bundle, replace(SMALL, **changed))  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if not path.is_dir()
    }


class Stopped(BaseException):
    """Ends a run as an interrupt does."""


def stop_after(count: int) -> Callable[[FinishedShard], None]:
    """Return an `on_shard` that ends the run after some shards."""
    seen: list[FinishedShard] = []

    def on_shard(shard: FinishedShard) -> None:
        seen.append(shard)
        if len(seen) == count:
            raise Stopped

    return on_shard


def command(bundle: Path, out: Path, *words: str) -> "subprocess.Popen[bytes]":
    """Start `generate` as a process."""
    options = ["--num", "500", "--shard-size", "10", "--schedule", "E2", "--threads", "1", *words]
    process = [sys.executable, str(ROOT / "flowturbo_trt.py"), "generate", str(bundle), str(out), *options]
    return subprocess.Popen(process, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def wait_for_shards(out: Path, count: int) -> None:
    """Wait until so many shards of a set are there."""
    deadline = time.monotonic() + 120
    while not (out / "shards").is_dir() or len(list((out / "shards").iterdir())) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
