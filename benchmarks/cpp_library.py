"""The project that `flowturbo_trt cpp` writes: built, its images held against Python's, its start timed."""

import statistics
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowturbo_trt.benchmarks.cpp_builds import find_toolchain
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.examples.digits.bundle import GUIDANCE, digits_options
from flowturbo_trt.export.build import build
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.serving.cpp_project import write_project

IMAGES = 1000
STARTS = 21
SECONDS = 0.5
EQUAL = 0.999


def measure(folder: Path, images: int = IMAGES, starts: int = STARTS) -> tuple[dict[str, Any], list[Check]]:
    """Write the project, build it as its README says, and run it as a process of its own."""
    bundle = build(replace(digits_options(), batches=(1, 8)), folder / "digits").path
    project = write_project(bundle, folder / "project").path
    find_toolchain().build(project, folder / "build", "-DCMAKE_BUILD_TYPE=Release")
    program = [str(folder / "build" / "generate"), str(project / "bundle")]
    seconds = [_timed([*program, str(folder / "one.ppm"), "3"]) for _ in range(starts)]
    labels = np.arange(images) % 10
    _timed([*program, str(folder / "all.ppm"), *map(str, labels)])
    found = _read(folder / "all.ppm", images)
    apart = np.abs(found.astype(int) - Pipeline.load(bundle)(labels))
    equal = float(np.mean(apart == 0))
    middle = statistics.median(seconds)
    figures = {
        "precision": "fp32",
        "backend": "onnxruntime",
        "schedule": "H1P5R3",
        "guidance": GUIDANCE,
        "samples": images,
        "start_seconds": seconds,
    }
    return figures, [
        Check("share of pixels that are Python's", equal, f"at least {EQUAL}", equal >= EQUAL),
        Check("largest distance of a pixel", float(apart.max()), "at most 1", bool(apart.max() <= 1)),
        Check(
            f"seconds from process start to the first image, written, median of {starts}",
            middle,
            f"at most {SECONDS}",
            middle <= SECONDS,
        ),
    ]


def _timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _read(file: Path, images: int) -> NDArray[np.uint8]:
    """Return the images (N,H,W,3) that lie side by side in a file."""
    with Image.open(file) as strip:
        pixels = np.asarray(strip)
    height, width, _ = pixels.shape
    return pixels.reshape(height, images, width // images, 3).swapaxes(0, 1)
