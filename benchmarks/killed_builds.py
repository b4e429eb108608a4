"""What `kill -9` does to builds: nothing is lost, whatever the moment."""

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.examples.digits.loop import WEIGHTS

KILLS = 20
# Seconds until a kill: from within the imports to past several pieces of work.
EARLIEST, LATEST = 1.0, 15.0


def measure(folder: Path) -> tuple[dict[str, Any], list[Check]]:
    """Kill builds over an older bundle at random moments; each goes on from where the last was killed."""
    out, log, saved = folder / "digits", folder / "digits.build.log", folder / "saved"
    _start(out, "--schedule", "H4").wait()
    shutil.copytree(out, saved)
    older = Bundle.open(out).manifest
    # Another variant and precision, so that the older bundle has but half of the graphs and no engine.
    words = ["--schedule", "H1P5R3", "--variant", "unguided", "--variant", "guided"]
    words += ["--precision", "fp16", "--backend", "tensorrt-rtx"]
    generator = random.Random(0)
    kills = at_work = completed = broken = remade = 0
    killed = True
    while killed or kills < KILLS:
        finished, said = _finished(out), len(log.read_text().splitlines())
        # The last one is let through.
        seconds = generator.uniform(EARLIEST, LATEST) if kills < KILLS else None
        killed = _kill_after(_start(out, *words), seconds)
        kills += killed
        completed += not killed
        at_work += killed and (out.parent / f".{out.name}.build" / "running").exists()
        broken += not _is_whole(out, older, done=not killed)
        remade += _remade(log, said, finished)
        if not killed and kills < KILLS:
            shutil.rmtree(out)
            shutil.copytree(saved, out)
    figures = {"kills": kills, "kills_within_a_piece": at_work, "builds_completed": completed}
    return figures, [
        Check("bundles broken by 20 kills", float(broken), "0", broken == 0),
        Check("finished pieces made a second time", float(remade), "0", remade == 0),
        Check("kills within a piece of work", float(at_work), "at least 5", at_work >= 5),
    ]


def _start(out: Path, *words: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "flowturbo_trt", "build", "--quiet", str(out)]
    for role, name in (("predictor", "predictor"), ("refiner", "refiner")):
        command += [f"--{role}", str(WEIGHTS / f"{name}.safetensors")]
    command += ["--decoder", str(WEIGHTS / "autoencoder"), "--config", str(WEIGHTS / "config.json")]
    return subprocess.Popen([*command, "--backend", "onnxruntime", *words], stdout=subprocess.DEVNULL)


def _kill_after(process: "subprocess.Popen[bytes]", seconds: float | None) -> bool:
    """Kill a build after some time, unless it is done before; return whether it was killed."""
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    if status:
        raise subprocess.CalledProcessError(status, process.args)
    return False


def _finished(out: Path) -> set[str]:
    """Return the names of the pieces an interrupted build has finished."""
    records = (out.parent / f".{out.name}.build" / "finished").glob("*.json")
    return {json.loads(record.read_text())["name"] for record in records}


def _remade(log: Path, said: int, finished: set[str]) -> int:
    """Count the finished pieces that the log, from line `said` on, says were made."""
    lines = log.read_text().splitlines()[said:]
    return sum(f"{name}: made" in line for name in finished for line in lines)


def _is_whole(out: Path, older: Manifest, *, done: bool) -> bool:
    """Tell whether a bundle is there with all its files: the older one, or the new one if it was done."""
    bundle = Bundle.open(out)
    bundle.check_all()
    is_new = list(bundle.manifest.programs) == ["H1P5R3"]
    return is_new or (bundle.manifest == older and not done)
