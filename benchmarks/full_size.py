"""Building at full size: SiT-XL/2 and the Stable Diffusion decoder, with random weights."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL

from flowturbo_trt.benchmarks.random_weights import write_checkpoints
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.models.autoencoder import STABLE_DIFFUSION_CONFIG

MODEL = "SiT-XL/2"
# Pixels along a side of the image; latents have an eighth.
SIZES = (256, 512)
BATCHES = (1, 8)
MAX_SECONDS, MAX_GIB = 300, 10


def measure(folder: Path) -> tuple[dict[str, Any], list[Check]]:
    """Build for TensorRT-RTX in fp16 in a process of its own; takes 15 GB of disk."""
    rows = [measure_size(folder / str(size), size) for size in SIZES]
    first = rows[0]
    repeat = first["seconds_again"]
    return {"model": MODEL, "precision": "fp16", "backend": "tensorrt-rtx", "builds": rows}, [
        Check(
            f"seconds to build {MODEL} at 256 pixels",
            first["seconds"],
            f"at most {MAX_SECONDS}",
            first["seconds"] <= MAX_SECONDS,
        ),
        Check("GiB resident at most", first["peak_gib"], f"at most {MAX_GIB}", first["peak_gib"] <= MAX_GIB),
        Check("seconds when all is finished already", repeat, "at most 60", repeat <= 60),
    ]


def measure_size(folder: Path, size: int) -> dict[str, Any]:
    """Write checkpoints for one image size, build them twice and describe what came of it."""
    folder.mkdir()
    write_checkpoints(folder, MODEL, size // 8)
    AutoencoderKL(**STABLE_DIFFUSION_CONFIG).save_pretrained(folder / "autoencoder")
    seconds, peak = build_once(folder)
    again, _ = build_once(folder)
    bundle = Bundle.open(folder / "bundle")
    engines = {e.network: bundle.manifest.files[e.file].bytes / 1e6 for e in bundle.manifest.engines}
    total = sum(record.bytes for record in bundle.manifest.files.values())
    for path in (*folder.glob("*.pt"), *(bundle.path / name for name in bundle.manifest.files)):
        path.unlink()
    return {
        "pixels": size,
        "batches": list(BATCHES),
        "seconds": round(seconds, 1),
        "peak_gib": round(peak, 2),
        "seconds_again": round(again, 1),
        "plan_mb": {network: round(megabytes, 1) for network, megabytes in engines.items()},
        "bundle_mb": round(total / 1e6, 1),
    }


def build_once(folder: Path) -> tuple[float, float]:
    """Return a build's seconds and, from its log, the most GiB resident."""
    command = [sys.executable, "-m", "flowturbo_trt", "build", "--model", MODEL, "--quiet"]
    command += ["--predictor", str(folder / "predictor.pt"), "--refiner", str(folder / "refiner.pt")]
    command += ["--decoder", str(folder / "autoencoder"), "--schedule", "H1P5R3"]
    command += ["--backend", "tensorrt-rtx", "--precision", "fp16"]
    command += [word for batch in BATCHES for word in ("--batch", str(batch))]
    started = time.monotonic()
    subprocess.run([*command, str(folder / "bundle")], stdout=subprocess.DEVNULL, check=True)
    seconds = time.monotonic() - started
    log = folder / "bundle.build.log"
    peak = max(float(text) for text in re.findall(r"([\d.]+) at most", log.read_text()))
    log.unlink()
    return seconds, peak
