"""Bisecting names the layer that was tampered with."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.parity.bisect import BisectError, Bisection, bisect, require_tools
from flowturbo_trt.evaluation.parity.options import ParityOptions
from flowturbo_trt.evaluation.parity.results import EngineParity, ParityReport
from flowturbo_trt.evaluation.parity.verification import verify
from flowturbo_trt.tests.faults import (
    Fault,
    copy_in,
    fix_batch,
    half_precision_time,
    plant,
    product_weights,
    scale_decoder,
    scale_product,
    swap_conditions,
)


def failed(bundle: Path) -> tuple[ParityReport, EngineParity]:
    report = verify(Bundle.open(bundle), ParityOptions(threads=1))
    (result,) = (result for result in report.engines if result.status == "failed")
    return report, result


def find(bundle: Path) -> Bisection:
    report, result = failed(bundle)
    return bisect(Bundle.open(bundle), result, report.recordings)


@pytest.mark.parametrize(("index", "external"), [*((i, False) for i in range(10)), (0, True), (4, True)])
def test_names_the_perturbed_weight(tiny_copy: Path, index: int, external: bool) -> None:
    """Also where the weights lie in a file of their own."""
    plant(tiny_copy, "predictor", scale_product(index, 1.01), external=external)
    weights = product_weights(onnx.load(tiny_copy / "onnx" / "predictor.guided.onnx"))
    name, node = list(weights.items())[index]
    found = find(tiny_copy).divergence
    assert found is not None
    assert (found.op_type, found.node, found.weights[0]) == (node.op_type, node.name, name)
    assert found.relative_l2 > found.limit


def test_names_the_convolution_of_a_decoder(tiny_copy: Path) -> None:
    found = find(plant(tiny_copy, "decoder", scale_decoder(1.05), None)).divergence
    assert found is not None
    assert found.op_type == "Conv"
    assert found.relative_l2 == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize(("fault", "op_type"), [(swap_conditions, "Gather"), (half_precision_time, None)])
def test_names_where_other_faults_begin(tiny_copy: Path, fault: Fault, op_type: str | None) -> None:
    found = find(plant(tiny_copy, "predictor", fault)).divergence
    assert found is not None
    assert op_type is None or found.op_type == op_type


def test_half_precision_engines(tiny_bundle: Path, tmp_path: Path) -> None:
    """Casts have no counterpart and are passed over."""
    found = find(plant(copy_in("fp16", tiny_bundle, tmp_path), "predictor", scale_product(4, 1.1))).divergence
    assert found is not None
    assert found.op_type == "MatMul"
    assert "attn.qkv" in found.weights[0]


def test_what_cannot_be_bisected(tiny_copy: Path) -> None:
    raised = find(plant(tiny_copy, "predictor", fix_batch(2)))
    assert raised.divergence is None
    assert "no output" in raised.note


def test_a_plan_cannot_be_read(tiny_copy: Path) -> None:
    report, result = failed(plant(tiny_copy, "predictor", scale_product(0, 1.1)))
    plan = replace(result, engine=replace(result.engine, file="engines/tensorrt/predictor.plan"))
    found = bisect(Bundle.open(tiny_copy), plan, report.recordings)
    assert found.divergence is None
    assert "cannot be read" in found.note


def test_missing_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    require_tools()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BisectError, match=r"pip install 'flowturbo_trt\[verify\]'"):
        require_tools()
