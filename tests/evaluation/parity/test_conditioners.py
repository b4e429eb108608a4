"""Verification of bundles whose conditioning is hoisted, and of schedules that guide some of the time."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.manifest import conditioner_of
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.parity.comparison import row_relative_l2
from flowturbo_trt.evaluation.parity.options import ParityOptions
from flowturbo_trt.evaluation.parity.recording import open_reference, record
from flowturbo_trt.evaluation.parity.results import ParityReport
from flowturbo_trt.evaluation.parity.verification import verify
from flowturbo_trt.runtime.host_backend import HostBackend
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.program import Evaluate
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.tests.bundles import edit_manifest, latents
from flowturbo_trt.tests.faults import lower, plant, scale_product, scale_row

OPTIONS = ParityOptions(threads=1)
INTERVAL = "H1P2R2:guided=0.2..0.6"
NULL_OF_TINY = 3


def statuses(report: ParityReport) -> set[str]:
    return {check.status for check in report.checks}


def failed_engines(report: ParityReport) -> set[str]:
    return {result.engine.name for result in report.engines if result.status == "failed"}


def excess(report: ParityReport, network: str) -> float:
    """Return how far a network's worst call is past its limit: what is wrong in its file does not count."""
    (result,) = (result for result in report.engines if result.engine.network == network)
    assert result.worst_call is not None
    return result.worst_call.excess(result.limits)


@pytest.mark.parametrize("bundle", ["golden_bundle", "golden_fused_bundle"])
def test_honest_bundles(bundle: str, request: pytest.FixtureRequest) -> None:
    """Every engine of either kind, in whole and mixed trajectories."""
    options = replace(OPTIONS, backends=("onnxruntime",), schedules=("H1P1R1", INTERVAL))
    report = verify(Bundle.open(request.getfixturevalue(bundle)), options)
    assert statuses(report) == {"passed"}
    assert len(report.engines) == (7 if bundle == "golden_bundle" else 5)
    assert len(report.trajectories) == 2 * 2 * 2


def test_trunk_is_given_what_its_conditioner_gave(tiny_bundle: Path) -> None:
    """For its own time and labels, and for that which stands for none."""
    bundle = Bundle.open(tiny_bundle)
    recording = record(open_reference(bundle, 1), bundle.manifest, "H1P1R1", "guided", 4, 0)
    for network in ("predictor", "refiner"):
        conditioned = recording.calls_of(conditioner_of(network), None)
        calls = recording.calls_of(network, "guided")
        for call, own, null in zip(calls, conditioned[::2], conditioned[1::2], strict=True):
            assert own.output.shape == null.output.shape == (4, 1, 128)
            np.testing.assert_array_equal(call.inputs["modulation"], own.output[:, 0])
            np.testing.assert_array_equal(call.inputs["null_modulation"], null.output[:, 0])
            assert {call.index, own.index, null.index} == {call.index}
            assert {*own.inputs["time"], *null.inputs["time"]} == {np.float32(call.t)}
            assert own.inputs["label"].tolist() == [0, 1, 2, 0]
            assert set(null.inputs["label"]) == {NULL_OF_TINY}
            assert row_relative_l2(own.output, null.output).min() > 0.01


def test_recording_of_an_interval_is_the_pipelines_trajectory(
    golden_bundle: Path, golden_pipeline: Pipeline
) -> None:
    bundle = Bundle.open(golden_bundle)
    recording = record(open_reference(bundle, 1), bundle.manifest, INTERVAL, "guided", 4, 5)
    evaluations = [i for i in recording.program.instructions if isinstance(i, Evaluate)]
    found = [call for call in recording.calls if call.network_variant is not None]
    assert [(c.network, c.network_variant, c.t) for c in found] == [
        (i.network, i.variant, i.time) for i in evaluations
    ]
    assert {call.network_variant for call in found} == {"guided", "unguided"}
    request = recording.request
    expected = latents(
        golden_pipeline,
        request.conditions["label"],
        INTERVAL,
        seeds=request.seeds,
        guidance=request.guidance,
    )
    assert row_relative_l2(recording.latents, expected).max() < 1e-6
    # Rows of scale 1 are guided as the others are: the engines are chosen by the request.
    assert request.guidance.tolist() == [1.5, 1, 3, 1.5]


def test_fault_outside_the_interval_shows_in_guided_trajectories(golden_bundle: Path, tmp_path: Path) -> None:
    """An unguided engine takes part in a mixed trajectory, and in no other guided one."""
    copy = Path(shutil.copytree(golden_bundle, tmp_path / "copy"))
    plant(copy, "predictor", scale_product(1, 1.1), "unguided")
    options = replace(OPTIONS, backends=("onnxruntime",), schedules=("H1P1R1", INTERVAL), batches=(2,))
    report = verify(Bundle.open(copy), options)
    assert failed_engines(report) == {"predictor unguided"}
    assert {(t.schedule, t.variant): t.status for t in report.trajectories} == {
        ("H1P1R1", "guided"): "passed",
        ("H1P1R1", "unguided"): "failed",
        (INTERVAL, "guided"): "failed",
        (INTERVAL, "unguided"): "failed",
    }
    (mixed,) = (t for t in report.trajectories if (t.schedule, t.variant) == (INTERVAL, "guided"))
    # The first step is outside the interval already.
    assert not Schedule.parse(INTERVAL).is_guided_at(0)
    assert mixed.left_at == 0


def test_fault_of_a_conditioner_is_its_own(tiny_copy: Path) -> None:
    """Trunks are given the reference's modulations, so that they are not blamed for it."""
    report = verify(
        Bundle.open(plant(tiny_copy, "refiner_conditioner", scale_product(2, 1.01), None)), OPTIONS
    )
    assert failed_engines(report) == {"refiner_conditioner"}
    assert excess(report, "refiner_conditioner") > 10
    assert excess(report, "predictor_conditioner") <= 1
    # Two steps are the predictor's.
    assert [t.left_at for t in report.trajectories] == [2, 2]


def test_fault_of_the_null_condition(tiny_copy: Path) -> None:
    """No request gives that label, but every guided one takes it."""
    fault = scale_row("network.y_embedder.embedding_table.weight", NULL_OF_TINY, 1.01)
    report = verify(Bundle.open(plant(tiny_copy, "predictor_conditioner", fault, None)), OPTIONS)
    assert failed_engines(report) == {"predictor_conditioner"}
    assert excess(report, "predictor_conditioner") > 10


@pytest.mark.parametrize(("images", "calls"), [(4, 1), (70, 2)])
def test_conditioners_are_called_on_the_rows_they_were_built_for(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, images: int, calls: int
) -> None:
    """However many rows there are: engines that fix them know no others."""
    bundle = Bundle.open(tiny_bundle)
    rows: list[int] = []
    evaluate = HostBackend.evaluate

    def spy(self: HostBackend, network: str, variant: str | None, inputs: Any) -> Any:
        # The reference has a view of its own, with the graphs for engines.
        if network == "predictor_conditioner" and self._bundle is bundle:
            rows.append(len(inputs["time"]))
        return evaluate(self, network, variant, inputs)

    monkeypatch.setattr(HostBackend, "evaluate", spy)
    report = verify(bundle, replace(OPTIONS, images=images, schedules=("H1",), batches=(3,)))
    # Two evaluations, each for the label and for none.
    assert rows == [64] * calls * 2 * 2
    (result,) = (r for r in report.engines if r.engine.network == "predictor_conditioner")
    assert result.status == "passed"
    assert {call.batch for call in result.calls} == {images}


def test_trajectory_is_as_precise_as_its_conditioner(tiny_copy: Path) -> None:
    plant(tiny_copy, "predictor_conditioner", lower("fp16"), None)

    def change(manifest: dict[str, Any]) -> None:
        for engine in manifest["engines"]:
            engine["precision"] = "fp16" if engine["network"] == "predictor_conditioner" else "fp32"

    edit_manifest(tiny_copy, change)
    report = verify(Bundle.open(tiny_copy), OPTIONS)
    assert statuses(report) == {"passed"}
    assert {trajectory.precision for trajectory in report.trajectories} == {"fp16"}


def test_bundle_without_engines_of_the_references_backend(tiny_copy: Path) -> None:
    """The float32 graphs are enough for a reference, whatever the bundle was built for."""
    pytest.importorskip("openvino")
    edit_manifest(tiny_copy, lambda m: [engine.update(backend="openvino") for engine in m["engines"]])
    report = verify(Bundle.open(tiny_copy), OPTIONS)
    assert statuses(report) == {"passed"}
    assert {result.engine.backend for result in report.engines} == {"openvino"}
