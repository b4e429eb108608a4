"""What `kill -9` does to builds: nothing is lost, whatever the moment."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.examples.digits.bundle import WEIGHTS

KILLS = 20


def measure(folder: Path) -> tuple[dict[str, Any], list[Check]]:
    """Kill builds over an older bundle at random moments until one is let through."""
    out, log = folder / "digits", folder / "digits.build.log"
    _start(out, "--schedule", "H4").wait()
    older = Bundle.open(out).manifest
    # Another variant and precision, so that the older bundle has but half of the graphs and no engine.
    words = ["--schedule", "H1P5R3", "--variant", "unguided", "--variant", "guided"]
    words += ["--precision", "fp16", "--backend", "tensorrt-rtx"]
    seconds = _time(folder / "whole", *words)
    generator = random.Random(0)
    broken = remade = 0
    for _ in range(KILLS):
        finished, said = _finished(out), len(log.read_text().splitlines())
        _kill_after(_start(out, *words), generator.uniform(0, seconds))
        broken += not _is_whole(out, older)
        remade += _remade(log, said, finished)
    finished, said = _finished(out), len(log.read_text().splitlines())
    _start(out, *words).wait()
    remade += _remade(log, said, finished)
    complete = list(Bundle.open(out).manifest.programs) == ["H1P5R3"]
    Bundle.open(out).check_all()
    return {"kills": KILLS, "seconds_of_a_whole_build": round(seconds, 1)}, [
        Check("bundles broken by 20 kills", float(broken), "0", broken == 0),
        Check("finished pieces made a second time", float(remade), "0", remade == 0),
        Check("the build let through is complete", float(complete), "1", complete),
    ]


def _start(out: Path, *words: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "flowturbo_trt", "build", "--quiet", str(out)]
    for role, name in (("predictor", "predictor"), ("refiner", "refiner")):
        command += [f"--{role}", str(WEIGHTS / f"{name}.safetensors")]
    command += ["--decoder", str(WEIGHTS / "autoencoder"), "--config", str(WEIGHTS / "config.json")]
    return subprocess.Popen([*command, "--backend", "onnxruntime", *words], stdout=subprocess.DEVNULL)


def _time(out: Path, *words: str) -> float:
    started = time.monotonic()
    _start(out, *words).wait()
    shutil.rmtree(out)
    return time.monotonic() - started


def _kill_after(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _finished(out: Path) -> set[str]:
    """Return the names of the pieces an interrupted build has finished."""
    records = (out.parent / f".{out.name}.build" / "finished").glob("*.json")
    return {json.loads(record.read_text())["name"] for record in records}


def _remade(log: Path, said: int, finished: set[str]) -> int:
    """Count the finished pieces that the log, from line `said` on, says were made."""
    lines = log.read_text().splitlines()[said:]
    return sum(f"{name}: made" in line for name in finished for line in lines)


def _is_whole(out: Path, older: object) -> bool:
    """Tell whether a bundle is there with all its files: the older one, or the new one if it was done."""
    bundle = Bundle.open(out)
    bundle.check_all()
    return bundle.manifest == older or list(bundle.manifest.programs) == ["H1P5R3"]
