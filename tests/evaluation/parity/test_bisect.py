"""Bisecting names the layer that was tampered with."""

import importlib.util
import shutil
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
    scale_row,
    swap_conditions,
    swap_modulations,
)


def failed(bundle: Path) -> tuple[ParityReport, EngineParity]:
    report = verify(Bundle.open(bundle), ParityOptions(threads=1))
    (result,) = (result for result in report.engines if result.status == "failed")
    return report, result


def find(bundle: Path) -> Bisection:
    report, result = failed(bundle)
    return bisect(Bundle.open(bundle), result, report.recordings)


@pytest.mark.parametrize(
    ("network", "index", "external"),
    [
        *(("predictor", index, False) for index in range(6)),
        *(("predictor_conditioner", index, False) for index in range(4)),
        ("predictor", 0, True),
        ("predictor", 4, True),
        ("predictor_conditioner", 2, True),
    ],
)
def test_names_the_perturbed_weight(tiny_copy: Path, network: str, index: int, external: bool) -> None:
    """Also where the weights lie in a file of their own."""
    variant = "guided" if network == "predictor" else None
    plant(tiny_copy, network, scale_product(index, 1.01), variant, external=external)
    (graph,) = (g for g in Bundle.open(tiny_copy).manifest.graphs if g.network == network)
    weights = product_weights(onnx.load(tiny_copy / graph.file))
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


@pytest.mark.parametrize(
    ("bundle", "network", "fault", "op_type"),
    [
        ("tiny_bundle", "predictor", swap_modulations, "Concat"),
        ("tiny_bundle", "predictor_conditioner", half_precision_time, None),
        ("tiny_fused_bundle", "predictor", swap_conditions, "Gather"),
        ("tiny_fused_bundle", "predictor", half_precision_time, None),
    ],
)
def test_names_where_other_faults_begin(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    bundle: str,
    network: str,
    fault: Fault,
    op_type: str | None,
) -> None:
    copy = Path(shutil.copytree(request.getfixturevalue(bundle), tmp_path / "copy"))
    variant = "guided" if network == "predictor" else None
    found = find(plant(copy, network, fault, variant)).divergence
    assert found is not None
    assert op_type is None or found.op_type == op_type


def test_what_is_wrong_with_the_null_condition_alone(tiny_copy: Path) -> None:
    """A conditioner is called for the label and for none; only the second call shows it."""
    fault = scale_row("network.y_embedder.embedding_table.weight", -1, 1.5)
    found = find(plant(tiny_copy, "predictor_conditioner", fault, None)).divergence
    assert found is not None
    assert found.op_type == "Gather"
    assert found.weights == ("network.y_embedder.embedding_table.weight",)


def test_half_precision_engines(tiny_bundle: Path, tmp_path: Path) -> None:
    """Casts have no counterpart and are passed over."""
    found = find(plant(copy_in("fp16", tiny_bundle, tmp_path), "predictor", scale_product(1, 1.1))).divergence
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


def test_an_engine_that_is_the_graph(tiny_copy: Path) -> None:
    """What lowers the graph as it loads it has no layers of its own in a file."""
    report, result = failed(plant(tiny_copy, "predictor", scale_product(0, 1.1)))
    manifest = Bundle.open(tiny_copy).manifest
    graph = next(g for g in manifest.graphs if g.name == result.engine.name)
    engine = replace(result.engine, file=graph.file, data=graph.data, backend="openvino", precision="bf16")
    found = bisect(Bundle.open(tiny_copy), replace(result, engine=engine), report.recordings)
    assert found.divergence is None
    assert found.note.endswith("the difference arises in how openvino computes it in bf16")
