"""The versions that a build or a measurement depends on."""

import importlib.metadata
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
