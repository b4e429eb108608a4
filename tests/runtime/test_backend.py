"""Which backend and which device a bundle is run on, and what is said to names that are not known."""

from dataclasses import replace
from pathlib import Path

import pytest

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import (
    BACKENDS,
    BackendError,
    default_backend,
    default_device,
    load_backend,
)
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def built_for(manifest: Manifest, *backends: str) -> Manifest:
    """A manifest whose engines are for other backends."""
    engine = manifest.engines[0]
    return replace(manifest, engines=tuple(replace(engine, backend=backend) for backend in backends))


def test_default_backend(bundle: Bundle) -> None:
    """ONNX Runtime where there are engines for it, else the first that was built for."""
    assert default_backend(bundle.manifest) == "onnxruntime"
    assert default_backend(built_for(bundle.manifest, "tensorrt-rtx", "onnxruntime")) == "onnxruntime"
    assert default_backend(built_for(bundle.manifest, "tensorrt-rtx", "openvino")) == "tensorrt-rtx"
    assert default_backend(built_for(bundle.manifest)) == "onnxruntime"


def test_default_device() -> None:
    devices = {name: default_device(name, None) for name in BACKENDS}
    assert devices == {"onnxruntime": "cpu", "openvino": "cpu", "tensorrt-rtx": "cuda", "tensorrt": "cuda"}
    assert default_device("onnxruntime", "cpu") == "cpu"
    assert default_device("onnxruntime", "cuda") == default_device("onnxruntime", "tensorrt") == "cuda"


@pytest.mark.parametrize("name", ["onnx", "trt", "ONNXRUNTIME", ""])
def test_unknown_backend(bundle: Bundle, name: str) -> None:
    with pytest.raises(BackendError, match=rf"^backend '{name}' is not known; use {', '.join(BACKENDS)}$"):
        load_backend(name, bundle, "cpu", 1)


@pytest.mark.parametrize("provider", [None, "cpu"])
def test_provider_on_the_cpu(bundle: Bundle, provider: str | None) -> None:
    for device in (None, "cpu"):
        assert isinstance(load_backend("onnxruntime", bundle, device, 1, provider), OnnxRuntimeBackend)


@pytest.mark.parametrize(
    ("name", "device", "provider", "words"),
    [
        (
            "openvino",
            "cpu",
            "cpu",
            "provider cpu: only onnxruntime has providers, not openvino; leave it out",
        ),
        ("onnxruntime", "cpu", "cuda", "provider cuda does not run on device cpu; leave one of them out"),
        ("onnxruntime", "cuda", "cpu", "provider cpu does not run on device cuda; leave one of them out"),
        ("onnxruntime", "cuda", "rocm", "unknown provider 'rocm'; expected cpu, cuda, tensorrt"),
    ],
)
def test_provider_that_cannot_be(bundle: Bundle, name: str, device: str, provider: str, words: str) -> None:
    with pytest.raises(BackendError, match=f"^{words}$"):
        load_backend(name, bundle, device, 1, provider)
