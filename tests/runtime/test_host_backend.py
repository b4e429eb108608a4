"""Backends in host memory: files held against the manifest, and engines called once on given arrays."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.manifest import Engine, Tensor
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.backend_onnxruntime import NAME, OnnxRuntimeBackend
from flowturbo_trt.runtime.host_backend import check_interface

DESCRIBED = (Tensor("state", "float32", ("batch", 2, 4, 4)), Tensor("label", "int64", ("batch",)))
FOUND: dict[str, tuple[str, Any]] = {"state": ("float32", ["N", 2, 4, 4]), "label": ("int64", ["N"])}


@pytest.fixture
def engine(tiny_bundle: Path) -> Engine:
    return Bundle.open(tiny_bundle).manifest.engine("predictor", "guided", NAME)


@pytest.mark.parametrize("axis", ["N", None, 0.5])
def test_free_batch_axis(engine: Engine, axis: object) -> None:
    check_interface(engine, DESCRIBED, FOUND | {"state": ("float32", [axis, 2, 4, 4])})


@pytest.mark.parametrize(
    ("name", "found", "words"),
    [
        ("state", ("float16", ["N", 2, 4, 4]), r"its state is float16 \['N', 2, 4, 4\] in onnx/.*, float32 "),
        ("state", ("float32", ["N", 2, 4, 5]), r"its state is float32 \['N', 2, 4, 5\] in onnx/"),
        ("state", ("float32", ["N", 2, "H", 4]), r"its state is float32 \['N', 2, 'H', 4\] in onnx/"),
        ("state", ("float32", ["N", 2, 4]), r"its state is float32 \['N', 2, 4\] in onnx/"),
        ("state", ("float32", []), r"its state is float32 \[\] in onnx/"),
        (
            "state",
            ("float32", [3, 2, 4, 4]),
            r"its state is float32 \[3, 2, 4, 4\] in onnx/.*\['batch', 2, 4, 4\]",
        ),
        (
            "label",
            ("int32", ["N"]),
            r"its label is int32 \['N'\] in onnx/.*, int64 \['batch'\] in the manifest",
        ),
        ("extra", ("int64", ["N"]), r"has extra, which the manifest does not know; rebuild it$"),
    ],
)
def test_file_that_differs(engine: Engine, name: str, found: tuple[str, Any], words: str) -> None:
    with pytest.raises(BackendError, match=rf"^predictor guided: .*{words}"):
        check_interface(engine, DESCRIBED, FOUND | {name: found})


def test_tensor_that_is_missing(engine: Engine) -> None:
    with pytest.raises(BackendError, match=r"its label is nothing \[\] in onnx/.*; rebuild it$"):
        check_interface(engine, DESCRIBED, {"state": FOUND["state"]})


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_both_sides_are_checked(tiny_bundle: Path, engine: Engine, side: str) -> None:
    """When an engine is loaded, before anything is computed with it."""
    bundle = Bundle.open(tiny_bundle)
    first, *others = getattr(engine, side)
    changes: dict[str, Any] = {side: (replace(first, shape=(*first.shape[:-1], 5)), *others)}
    wrong = replace(engine, **changes)
    with pytest.raises(BackendError, match=rf"its {first.name} is .* in the manifest; rebuild it"):
        OnnxRuntimeBackend(bundle, 1).load(wrong)


def test_evaluate_takes_rows_of_larger_arrays(tiny_bundle: Path) -> None:
    """Engines are bound by address, and arrays may have gaps."""
    backend = OnnxRuntimeBackend(Bundle.open(tiny_bundle), 1)
    random = np.random.default_rng(0)
    states = random.standard_normal((6, 2, 4, 4)).astype(np.float32)
    whole = backend.evaluate("decoder", None, {"state": states})
    assert (whole.shape, str(whole.dtype)) == ((6, 8, 8, 3), "uint8")
    assert whole.std() > 1
    apart = backend.evaluate("decoder", None, {"state": states[::2]})
    assert np.abs(apart.astype(int) - whole[::2].astype(int)).max() <= 1
    turned = backend.evaluate("decoder", None, {"state": states.swapaxes(2, 3)})
    upright = backend.evaluate("decoder", None, {"state": states.swapaxes(2, 3).copy()})
    np.testing.assert_array_equal(turned, upright)
    assert not np.array_equal(turned, whole)
