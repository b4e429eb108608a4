"""The float32 graphs against torch, where it is installed: only it can tell that they are wrong."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.parity.options import ParityOptions
from flowturbo_trt.evaluation.parity.verification import verify
from flowturbo_trt.tests.bundles import edit_manifest
from flowturbo_trt.tests.faults import Fault, plant, swap_conditions, swap_modulations

OPTIONS = ParityOptions(threads=1)
NETWORKS = ["predictor", "refiner", "predictor_conditioner", "refiner_conditioner", "decoder"]


@pytest.mark.parametrize(
    ("field", "value", "wrong"),
    [
        ("depth", 5, {"predictor", "predictor_conditioner"}),
        ("num_heads", 1, {"predictor"}),
        ("hidden_size", 32, {"predictor", "predictor_conditioner"}),
        ("num_classes", 5, {"predictor_conditioner"}),
    ],
)
def test_a_configuration_that_is_not_the_graphs(
    tiny_copy: Path, field: str, value: int, wrong: set[str]
) -> None:
    edit_manifest(tiny_copy, lambda manifest: manifest["model"]["config"].update({field: value}))
    report = verify(Bundle.open(tiny_copy), OPTIONS)
    assert {result.engine.network for result in report.torch if result.status == "failed"} == wrong
    assert {result.engine.network for result in report.torch if result.status == "passed"} == {
        *NETWORKS
    } - wrong


def test_a_bundle_built_before_weights_were_named(tiny_copy: Path) -> None:
    """Nothing is wrong with it: what cannot be compared is said not to be."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["model"]["decoder_config"] = None

    edit_manifest(tiny_copy, change)
    report = verify(Bundle.open(tiny_copy), OPTIONS)
    assert [result.status for result in report.torch] == ["passed"] * 4 + ["not run"]


def test_torch_is_optional(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("flowturbo_trt.evaluation.parity.build_side.import_module", missing)
    report = verify(Bundle.open(tiny_bundle), OPTIONS)
    assert report.torch == ()
    assert report.notes[:2] == (
        "float32 graphs not held against torch: torch is not installed",
        "weights of engines not held against the graphs': torch is not installed",
    )


@pytest.mark.parametrize(
    ("bundle", "fault"), [("tiny_bundle", swap_modulations), ("tiny_fused_bundle", swap_conditions)]
)
def test_a_graph_that_is_not_torchs(
    request: pytest.FixtureRequest, tmp_path: Path, bundle: str, fault: Fault
) -> None:
    """Only torch can tell that the float32 graph itself is wrong: the engine agrees with it."""
    tiny_copy = Path(shutil.copytree(request.getfixturevalue(bundle), tmp_path / "copy"))
    plant(tiny_copy, "predictor", fault)
    (faulty,) = (tiny_copy / "engines" / "onnxruntime").iterdir()
    graph = "onnx/predictor.guided.onnx"
    shutil.copy(faulty, tiny_copy / graph)
    name = faulty.relative_to(tiny_copy).as_posix()
    edit_manifest(tiny_copy, lambda manifest: manifest["files"].update({graph: manifest["files"][name]}))
    report = verify(Bundle.open(tiny_copy), OPTIONS)
    assert {result.status for result in report.engines} == {"passed"}
    assert {result.status for result in report.trajectories} == {"passed"}
    failed, *others = (result.status for result in report.torch)
    assert failed == "failed"
    assert set(others) == {"passed"}
