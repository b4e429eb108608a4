"""Verification as a library: what is recorded, what is compared, and what each kind of fault shows."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.parity.comparison import (
    amplification,
    compare_call,
    compare_images,
    row_relative_l2,
    windows,
)
from flowturbo_trt.evaluation.parity.options import ParityError, ParityOptions
from flowturbo_trt.evaluation.parity.recording import (
    Call,
    NoReferenceError,
    Recording,
    make_rows,
    open_reference,
    record,
)
from flowturbo_trt.evaluation.parity.results import EngineParity, ParityReport
from flowturbo_trt.evaluation.parity.thresholds import THRESHOLDS, ThresholdError, loosest, thresholds
from flowturbo_trt.evaluation.parity.verification import verify
from flowturbo_trt.runtime.host_trajectory import HostTrajectory
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.program import Program
from flowturbo_trt.tests.bundles import edit_manifest, latents
from flowturbo_trt.tests.faults import plant, scale_product

OPTIONS = ParityOptions(threads=1)
NETWORKS = ["predictor", "refiner", "predictor_conditioner", "refiner_conditioner", "decoder"]


@pytest.fixture(scope="module")
def recording(tiny_bundle: Path) -> Recording:
    bundle = Bundle.open(tiny_bundle)
    return record(open_reference(bundle, 1), bundle.manifest, "H1P1R1", "guided", 4, 5)


def engine(report: ParityReport, network: str) -> EngineParity:
    (found,) = (result for result in report.engines if result.engine.network == network)
    return found


def test_rows_spread_over_what_a_caller_can_ask(tiny_bundle: Path) -> None:
    model = Bundle.open(tiny_bundle).manifest.model
    request = make_rows(model, 5, 7, "guided")
    assert request.conditions["label"].tolist() == [0, 1, 2, 0, 1]
    assert request.seeds == (7, 8, 9, 10, 11)
    assert request.guidance.tolist() == [2, 1, 4, 2, 1]
    assert make_rows(model, 2, 0, "guided").conditions["label"].tolist() == [0, 2]
    assert make_rows(model, 3, 0, "unguided").is_unguided


def test_recording_is_the_pipelines_trajectory(recording: Recording, tiny_pipeline: Pipeline) -> None:
    """The interpreter and the runtime agree where the engine is the graph; calls are in order."""
    request = recording.request
    found = latents(
        tiny_pipeline,
        request.conditions["label"],
        recording.schedule,
        seeds=request.seeds,
        guidance=request.guidance,
    )
    assert row_relative_l2(found, recording.latents).max() < 1e-6
    # Before each call its conditioner's, for the label and for none.
    assert [call.network for call in recording.calls] == [
        *["predictor_conditioner", "predictor_conditioner", "predictor"] * 3,
        *["refiner_conditioner", "refiner_conditioner", "refiner"] * 2,
    ]
    assert [call.index for call in recording.calls] == [index for index in range(5) for _ in range(3)]
    assert {len(array) for call in recording.calls for array in call.inputs.values()} == {4}
    assert recording.images is not None
    assert recording.images.shape == (4, 8, 8, 3)


def test_windows_cover_the_rows() -> None:
    assert list(windows(5, 2, everything=True)) == [slice(0, 2), slice(2, 4), slice(3, 5)]
    assert list(windows(5, 2, everything=False)) == [slice(0, 2)]


def test_row_relative_l2() -> None:
    expected = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], np.float32)
    found = np.array([[3.0, 4.5], [0.0, 0.0], [1e-3, 0.0], [np.nan, 0.0]], np.float32)
    np.testing.assert_allclose(row_relative_l2(found, expected), [0.1, 0, np.inf, np.nan])
    np.testing.assert_allclose(row_relative_l2(found, expected, 0.01)[2], 0.1, rtol=1e-6)


def test_amplification_of_guidance() -> None:
    """The standard deviation of u + s·(c − u) when c and u have independent errors of deviation 1."""
    generator = np.random.default_rng(0)
    c, u = generator.standard_normal((2, 200_000))
    for s, factor in zip((0, 1, 2, 4), amplification(np.array([0, 1, 2, 4], np.float32)), strict=True):
        assert np.std(u + s * (c - u)) == pytest.approx(factor, rel=0.01)


def refiner_call(output: np.ndarray) -> Call:
    velocity = np.ones_like(output)
    inputs = {"state": velocity[:, 0], "velocity": velocity, "guidance": np.array([1, 2], np.float32)}
    return Call("R", "guided", 3, "refiner", "guided", 0.5, inputs, output)


def test_an_untrained_refiner_is_measured_against_the_velocity() -> None:
    """Its offset is zero: a difference counts by what it does to the velocity that it is added to."""
    zero = np.zeros((2, 2, 1, 4, 4), np.float32)
    call = refiner_call(zero)
    limits = THRESHOLDS["fp32"]
    same, other = compare_call(call, zero, zero, slice(0, 2), 2)
    assert (same.relative_l2, same.cosine, same.excess(limits)) == (0, 1, 0)
    assert (same.half, other.half) == (0, 1)
    tiny, large = zero + 1e-8, zero + 1e-6
    assert all(e.excess(limits) <= 1 for e in compare_call(call, tiny, zero, slice(0, 2), 2))
    assert all(e.excess(limits) > 1 for e in compare_call(call, large, zero, slice(0, 2), 2))


def test_one_bad_half_of_one_row_is_named() -> None:
    expected = np.ones((2, 2, 1, 4, 4), np.float32)
    found = expected.copy()
    found[1, 1, 0, 0, 0] = np.nan
    good, bad = compare_call(refiner_call(expected), found, expected, slice(0, 2), 2)
    assert good.excess(THRESHOLDS["bf16"]) == 0
    assert bad.excess(THRESHOLDS["bf16"]) == math.inf
    assert (bad.half, bad.row) == (1, 1)


def test_image_errors(recording: Recording) -> None:
    assert recording.images is not None
    found = recording.images.copy()
    found[2] = np.where(found[2] > 100, found[2] - 100, found[2] + 100)
    error = compare_images(recording, found, recording.images, slice(0, 4), 4)
    assert (error.row, error.max_level_difference) == (2, 100)
    assert error.psnr == pytest.approx(20 * math.log10(255 / 100))


def test_thresholds() -> None:
    """Coarser formats are allowed more; a precision nobody measured is refused."""
    fp32, fp16, bf16 = (thresholds(precision) for precision in ("fp32", "fp16", "bf16"))
    assert fp32.call_relative_l2 < fp16.call_relative_l2 < bf16.call_relative_l2
    assert fp32.image_psnr > fp16.image_psnr > bf16.image_psnr
    assert loosest({"fp32", "bf16", "fp16"}, THRESHOLDS) == "bf16"
    with pytest.raises(ThresholdError, match="int3"):
        thresholds("int3")


def test_an_honest_bundle(tiny_bundle: Path) -> None:
    report = verify(Bundle.open(tiny_bundle), OPTIONS)
    assert [check.status for check in report.checks] == ["passed"] * len(report.checks)
    assert [result.engine.network for result in report.engines] == NETWORKS
    assert [(t.schedule, t.batch) for t in report.trajectories] == [("H1P1R1", 1), ("H1P1R1", 3)]
    assert len(report.trajectories[0].per_step) == 3
    # 4 rows of 3 calls: all rows at the largest batch, the first one at batch 1.
    assert [call.batch for call in engine(report, "predictor").calls] == [1] * 3 + [3] * 6
    # Of a conditioner the rows have no batch: all at once, for label and for none.
    assert [call.batch for call in engine(report, "predictor_conditioner").calls] == [4] * 6
    assert [result.engine.network for result in report.torch] == NETWORKS
    assert ["graphs themselves" in note for note in report.notes] == [True]


def test_what_is_not_evaluated_is_not_called_verified(tiny_bundle: Path) -> None:
    report = verify(Bundle.open(tiny_bundle), replace(OPTIONS, schedules=("H2",), batches=(1,)))
    assert engine(report, "predictor").status == "passed"
    assert engine(report, "refiner").status == "not run"
    assert "evaluates" in str(engine(report, "refiner").not_run)


def test_a_fault_of_the_runtime_shows_in_the_trajectory_alone(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_program: Callable[..., None] = HostTrajectory.set_program

    def set_wrongly(self: HostTrajectory, program: Program, rows: slice | None = None) -> None:
        set_program(self, program, rows)
        self._arrays["coefficients"][...] *= 1.001

    monkeypatch.setattr(HostTrajectory, "set_program", set_wrongly)
    report = verify(Bundle.open(tiny_bundle), OPTIONS)
    assert {result.status for result in report.engines} == {"passed"}
    assert {result.status for result in report.trajectories} == {"failed"}
    assert [result.left_at for result in report.trajectories] == [0, 0]


def test_a_program_that_is_not_its_schedules(tiny_copy: Path) -> None:
    """The reference follows the formulas, whatever the bundle's program says."""

    def change(manifest: dict[str, Any]) -> None:
        instructions = manifest["programs"]["H1P1R1"]["guided"]["instructions"]
        combine = next(i for i in instructions if i["op"] == "combine")
        combine["terms"][-1][0] *= 1.01

    edit_manifest(tiny_copy, change)
    report = verify(Bundle.open(tiny_copy), OPTIONS)
    assert {result.status for result in report.engines} == {"passed"}
    assert {result.status for result in report.trajectories} == {"failed"}


def test_a_program_of_other_steps(tiny_copy: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["programs"]["H1P1R1"] = manifest["programs"]["H2"]

    edit_manifest(tiny_copy, change)
    report = verify(Bundle.open(tiny_copy), OPTIONS)
    assert [t.failure for t in report.trajectories] == ["its program has 2 steps, the schedule 3"] * 2


def test_a_fault_of_one_engine_leaves_the_others(tiny_copy: Path) -> None:
    report = verify(Bundle.open(plant(tiny_copy, "refiner", scale_product(0, 1.1))), OPTIONS)
    assert [result.status for result in report.engines] == ["passed", "failed", "passed", "passed", "passed"]
    # Two steps are the predictor's, the third the refiner's.
    assert [result.left_at for result in report.trajectories] == [2, 2]


def test_engines_that_are_missing(tiny_copy: Path) -> None:
    def drop_refiner(manifest: dict[str, Any]) -> None:
        manifest["engines"] = [e for e in manifest["engines"] if e["network"] != "refiner"]

    edit_manifest(tiny_copy, drop_refiner)
    report = verify(Bundle.open(tiny_copy), OPTIONS)
    assert {result.status for result in report.trajectories} == {"failed"}
    assert "no guided refiner engine" in str(report.trajectories[0].failure)


def test_without_a_reference(tiny_copy: Path) -> None:
    edit_manifest(tiny_copy, lambda manifest: manifest.update(graphs=[]))
    with pytest.raises(NoReferenceError, match="no float32 graphs"):
        verify(Bundle.open(tiny_copy), OPTIONS)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"backends": ("abacus",)}, "has engines for onnxruntime"),
        ({"batches": (2,)}, "built for 1, 3"),
        ({"device": "tpu"}, "expected cpu"),
    ],
)
def test_options_that_name_what_is_not_there(tiny_bundle: Path, changed: Any, words: str) -> None:
    with pytest.raises(ParityError, match=words):
        verify(Bundle.open(tiny_bundle), replace(OPTIONS, **changed))
