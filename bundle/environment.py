"""What a build, a run or a measurement depends on: versions, and this machine's cores."""

import importlib.metadata
import os
import platform

import flowturbo_trt

PACKAGES = (
    "numpy",
    "onnxruntime-gpu",
    "onnxruntime",
    "torch",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "diffusers",
    "tensorrt",
    "openvino",
    "cuda-bindings",
    "tensorrt-rtx-cu13",
)


def versions() -> dict[str, str]:
    """Return the versions of this project, Python and those of PACKAGES that are installed."""
    found = {"flowturbo_trt": flowturbo_trt.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """Return the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
