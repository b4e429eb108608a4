"""Fifty thousand digits: generated, killed in the middle, gone on with and evaluated, in what time."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.examples.digits.bundle import GUIDANCE, build_digits
from flowturbo_trt.examples.digits.data import load_split, to_uint8
from flowturbo_trt.examples.digits.loop import WEIGHTS

NUM = 50_000
# Of the sets that are compared file by file.
SMALL = 2000
KILLS = 3
SCHEDULE = "H1P5R3"
SHARD = 500
# A thread each: on the CPU two processes make more than one with two threads.
WORKERS = 2
MINUTES = 30
MEMORY = 2 * 2**30


@dataclass(frozen=True)
class Judged:
    """What `evaluate` said, how long it took and the most memory it held, in bytes."""

    document: dict[str, Any]
    seconds: float
    memory: int


def measure(folder: Path, num: int = NUM, small: int = SMALL) -> tuple[dict[str, Any], list[Check]]:
    """Generate `num` digits with a kill in the middle and judge them; then compare sets of `small`."""
    bundle = build_digits(folder / "digits").path
    started = time.perf_counter()
    killed_at = _kill_at(bundle, folder / "set", num, num // SHARD // 2)
    made = _finish(bundle, folder / "set", num)
    generated = time.perf_counter() - started
    judged = evaluate(folder / "set", folder)
    differing = compare(bundle, folder, small)
    total = (generated + judged.seconds) / 60
    figures = {
        "precision": "fp32",
        "backend": "onnxruntime",
        "schedule": SCHEDULE,
        "guidance": GUIDANCE,
        "images": num,
        "workers": WORKERS,
        "shard_size": SHARD,
        "killed_at": killed_at,
        "images_found": made["images_found"],
        "images_per_second": made["images_per_second"],
        "generation_seconds": generated,
        "evaluation_seconds": judged.seconds,
        "evaluation_memory_bytes": judged.memory,
        "metrics": judged.document["values"],
        "intervals": judged.document["intervals"],
    }
    lost = killed_at - int(made["images_found"])
    return figures, [
        Check(
            f"minutes to generate and evaluate {num} digits", total, f"at most {MINUTES}", total <= MINUTES
        ),
        Check("images lost by a kill in the middle", float(lost), "0", lost == 0),
        Check(f"files that {KILLS} kills changed in a set of {small}", float(differing), "0", differing == 0),
        Check(
            "GiB of memory to evaluate them",
            judged.memory / 2**30,
            "less than 2",
            judged.memory < MEMORY,
        ),
    ]


def evaluate(images: Path, folder: Path) -> Judged:
    """Judge a set against the digits that nothing was trained on."""
    real = to_uint8(load_split("judge").images).numpy()
    np.savez(folder / "real.npz", np.repeat(real[..., None], 3, axis=-1))
    words = [
        "evaluate",
        str(images),
        str(folder / "real.npz"),
        "--extractor",
        str(WEIGHTS / "extractor.onnx"),
    ]
    started = time.perf_counter()
    with (folder / "judged.json").open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "flowturbo_trt", *words, "--json", "--quiet"], stdout=file
        )
        _, status, usage = os.wait4(process.pid, 0)
    # Waited for behind its back, to be told of the memory.
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    seconds = time.perf_counter() - started
    return Judged(json.loads((folder / "judged.json").read_text()), seconds, 1024 * usage.ru_maxrss)


def compare(bundle: Path, folder: Path, num: int) -> int:
    """Count the files of two sets that are not the same: one killed several times, one made at once."""
    killed, whole = folder / "killed", folder / "whole"
    shard = max(1, num // 40)
    for kill in range(KILLS):
        _kill_at(bundle, killed, num, 40 * (kill + 1) // (KILLS + 1), "--shard-size", str(shard))
    _finish(bundle, killed, num, "--shard-size", str(shard))
    _finish(bundle, whole, num, "--shard-size", str(shard), "--workers", "1")
    found, expected = _content(killed), _content(whole)
    return sum(found.get(name) != expected.get(name) for name in found | expected)


def _content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _start(
    bundle: Path, out: Path, num: int, *words: str, stderr: int | None = None
) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "flowturbo_trt", "generate", str(bundle), str(out), "--json", "--quiet"]
    command += ["--num", str(num), "--schedule", SCHEDULE, "--guidance", str(GUIDANCE)]
    command += ["--shard-size", str(SHARD), "--workers", str(WORKERS), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)


def _kill_at(bundle: Path, out: Path, num: int, shards: int, *words: str) -> int:
    """Kill a run when so many shards are there; return the images that are."""
    # Python's own helpers, which outlive a kill, complain of it.
    process = _start(bundle, out, num, *words, stderr=subprocess.DEVNULL)
    while process.poll() is None and _shards(out) < shards:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    size = int(words[-1]) if words else SHARD
    return _shards(out) * size


def _shards(out: Path) -> int:
    return len(list((out / "shards").glob("*.npz")))


def _finish(bundle: Path, out: Path, num: int, *words: str) -> dict[str, Any]:
    process = _start(bundle, out, num, *words)
    text, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    document: dict[str, Any] = json.loads(text)
    return document
