"""Which backends may run where, and why not."""

import pytest

from flowturbo_trt.benchmarks.gpu.targets import DRY_TARGETS, TARGETS, Target, describe_gpu, targets_for
from flowturbo_trt.runtime.backend import BACKENDS, PROVIDERS, BackendError


def test_targets_are_backends_and_providers() -> None:
    for name, target in (TARGETS | DRY_TARGETS).items():
        assert target.backend in BACKENDS
        assert name == "-".join(filter(None, (target.backend, target.provider)))
        assert target.provider in (None, *PROVIDERS)
    assert targets_for("cpu") == DRY_TARGETS
    assert targets_for("cuda:1") == TARGETS


def test_missing() -> None:
    assert DRY_TARGETS["onnxruntime-cpu"].missing() is None
    assert Target("a", "no_such_module").missing() == "No module named 'no_such_module'"
    unknown = Target("onnxruntime", "onnxruntime", "tpu").missing()
    assert unknown is not None
    assert "unknown provider 'tpu'" in unknown


def test_gpu() -> None:
    assert describe_gpu("cpu") is None
    with pytest.raises(BackendError, match="cuda:99"):
        describe_gpu("cuda:99")
