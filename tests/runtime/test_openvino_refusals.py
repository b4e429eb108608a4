"""What the OpenVINO backend answers to what it cannot run: precisions, devices, files, a missing package."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.bundle.store import sha256
from flowturbo_trt.runtime import backend_openvino
from flowturbo_trt.runtime.backend import BackendError, UnsupportedError
from flowturbo_trt.runtime.backend_openvino import NAME, precisions
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.tests.bundles import changed_copy
from flowturbo_trt.tests.runtime.openvino_bundles import as_openvino

pytest.importorskip("openvino")


@pytest.fixture
def tiny(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """Give a function (precision, changes of its engines) that makes the tiny bundle one for OpenVINO."""
    return lambda precision="fp32", **changes: changed_copy(
        tiny_bundle, tmp_path, as_openvino(precision, **changes)
    )


def test_processor_without_bf16(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO would compute in float32 without a word."""
    monkeypatch.setattr(backend_openvino, "precisions", lambda core: ["fp32"])
    reason = r"no bf16 arithmetic \(AVX-512 BF16 or AMX\); rebuild it with --precision openvino=fp32"
    with pytest.raises(UnsupportedError, match=reason):
        Pipeline.load(tiny("bf16"), backend=NAME)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [(["FP32", "BF16"], ["fp32", "bf16"]), (["FP32", "INT8"], ["fp32", "int8"]), (["BIN"], ["fp32"])],
)
def test_precisions_of_a_processor(capabilities: list[str], expected: list[str]) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return capabilities

    assert precisions(Core()) == expected


def test_processor_without_int8(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_openvino, "precisions", lambda core: ["fp32"])
    reason = r"this processor has no int8 arithmetic; rebuild it with --precision openvino=fp32"
    with pytest.raises(UnsupportedError, match=reason):
        Pipeline.load(tiny("int8"), backend=NAME)


def test_precision_that_openvino_lacks(tiny: Callable[..., Path]) -> None:
    """It would compute in bf16 where fp16 is asked for."""
    reason = r"OpenVINO has no fp16 arithmetic on the CPU; rebuild it with --precision openvino=fp32 or bf16"
    with pytest.raises(BackendError, match=reason):
        Pipeline.load(tiny("fp16"), backend=NAME)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu", "CPU"])
def test_device(tiny_bundle: Path, device: str) -> None:
    with pytest.raises(BackendError, match=rf"^device '{device}': OpenVINO .*; use --device cpu"):
        Pipeline.load(tiny_bundle, backend=NAME, device=device)


def test_missing_package(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"^backend openvino is not installed .*flowturbo_trt\[openvino\]"):
        Pipeline.load(tiny_bundle, backend=NAME)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": "condition"}, r"its condition is nothing \[\] in .*, float32 \['batch', 2, 4, 4\] in the"),
        ({"dtype": "float16"}, r"its state is float32 \['\?', 2, 4, 4\] in .*, float16 .* rebuild it"),
        ({"shape": ["batch", 2, 4, 5]}, r"its state is float32 .* \['batch', 2, 4, 5\] in the manifest"),
        (None, r"has state, which the manifest does not know; rebuild it"),
    ],
)
def test_interface(tiny_bundle: Path, tmp_path: Path, changes: dict[str, Any] | None, complaint: str) -> None:
    """The file is held against the manifest: arrays are bound by what the manifest says."""

    def change(manifest: dict[str, Any]) -> None:
        as_openvino("fp32")(manifest)
        (engine,) = (engine for engine in manifest["engines"] if engine["network"] == "predictor")
        (state,) = (tensor for tensor in engine["inputs"] if tensor["name"] == "state")
        engine["inputs"].remove(state)
        if changes is not None:
            engine["inputs"].append(state | changes)

    with pytest.raises(BackendError, match=rf"^predictor guided: .*{complaint}"):
        Pipeline.load(changed_copy(tiny_bundle, tmp_path, change), backend=NAME)


def test_file_that_is_no_graph(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk" * 10)
    record = {"bytes": 40, "sha256": sha256(tmp_path / "junk")}
    name = "onnx/predictor.guided.onnx"

    def change(manifest: dict[str, Any]) -> None:
        as_openvino("fp32")(manifest)
        manifest["files"][name] = record

    damaged = changed_copy(tiny_bundle, tmp_path, change)
    (tmp_path / "junk").rename(damaged / name)
    reason = rf"^predictor guided: cannot read {name}: Unable to read the model"
    with pytest.raises(BackendError, match=reason) as caught:
        Pipeline.load(damaged, backend=NAME)
    assert "\n" not in str(caught.value)


def test_altered_file_is_not_loaded(tiny: Callable[..., Path]) -> None:
    damaged = tiny()
    file = damaged / "onnx" / "refiner.guided.onnx"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"refiner\.guided\.onnx: .*sha256 differs"):
        Pipeline.load(damaged, backend=NAME)
