"""The whole of `gpu-check` as a dry run, on bundles of the tests in place of those it builds."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flowturbo_trt.benchmarks import gpu_check
from flowturbo_trt.benchmarks.gpu import behaviour, checking
from flowturbo_trt.benchmarks.gpu.bundles import Wanted, Weights, digits_weights
from flowturbo_trt.benchmarks.gpu.targets import DRY_TARGETS, Target
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import Backend, BackendError

Run = Callable[..., Result]


@pytest.fixture
def built(tiny_bundle: Path, golden_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[Wanted]:
    """Take the tests' bundles for the digits and for random weights; lists what was to be built."""
    asked: list[Wanted] = []

    def build(weights: Weights, out: Path, wanted: Wanted, sibling: Path | None = None) -> Bundle:
        asked.append(wanted)
        return Bundle.open(golden_bundle if "unguided" in wanted.variants else tiny_bundle)

    monkeypatch.setattr(checking, "build_bundle", build)
    monkeypatch.setattr(checking, "random_weights", lambda folder, model: digits_weights())
    monkeypatch.setattr(behaviour, "REQUESTS_PER_THREAD", 2)
    return asked


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def invoke(*words: str, status: int = 3) -> Result:
        place = ("--work", str(tmp_path / "work"), "--out", str(tmp_path))
        result = CliRunner().invoke(gpu_check.main, [*words, *place])
        assert result.exit_code == status, result.output
        return result

    return invoke


def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "gpu_check.json").read_text())
    return found


def test_dry_run(run: Run, built: list[Wanted], tmp_path: Path) -> None:
    result = run("--device", "cpu", "--model", "tiny", "--precision", "fp32", "--precision", "fp16")
    assert "no GPU backend ran: this was a dry run on the CPU" in result.stdout
    found = document(tmp_path)
    assert found["dry_run"]
    assert found["device"] is None
    assert {"machine", "versions"} <= set(found)
    (entry,) = found["targets"]
    assert (entry["target"], entry["status"], entry["checks_left"]) == ("onnxruntime-cpu", "ran", 0)
    assert entry["plans"] == [{"compiled_for": "portable", "runs": True, "why": None}]
    assert not [check for check in entry["checks"] if check["status"] == "failed"]
    names = [check["name"] for check in entry["checks"]]
    for name in (
        "digits fp32: predictor guided",
        "digits fp32: H1P5R3 guided, batch 3",
        "tiny fp32: H1P2R2:guided=0.2..0.8 guided, batch 2, images",
        "digits fp16: AB2x8 guided, batch 1",
        "digits: other labels, as a fresh pipeline gives it",
        "tiny: other times, as a fresh pipeline gives it",
        "libraries of the build machine in a deployed process",
        "graphs launched by a run",
    ):
        assert names.count(name) == 1, name
    # One line for each check, as it is found.
    assert all(any(name in line for line in result.stdout.splitlines()) for name in names)
    assert {wanted.precision for wanted in built} == {"fp32", "fp16"}


def test_precision_that_is_missed_is_a_failure(
    run: Run, built: list[Wanted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parity(setting: object, findings: Any, what: str, schedules: object) -> None:
        findings.check(what, 1, "at most 0", met=False)

    monkeypatch.setattr(checking, "parity", parity)
    result = run("--device", "cpu", "--model", "tiny", "--precision", "fp32")
    assert "✗ digits fp32: 1 (at most 0)" in result.stdout
    assert document(tmp_path)["targets"][0]["failed"]


class Refusing(Target):
    """A TensorRT for RTX that runs portable plans on no GPU, and some on this."""

    def missing(self) -> None:
        return None

    def open(self, bundle: Bundle, device: str) -> Backend:
        if bundle.manifest.engines[0].targets != ("8.9",):
            raise BackendError("compiled for another GPU")
        return DRY_TARGETS["onnxruntime-cpu"].open(bundle, "cpu")


def test_other_plans_are_tried_where_portable_ones_are_refused(
    built: list[Wanted], tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(weights: Weights, out: Path, wanted: Wanted, sibling: Path) -> Bundle:
        bundle = Bundle.open(tiny_bundle)
        engines = tuple(replace(engine, targets=wanted.targets) for engine in bundle.manifest.engines)
        return Bundle(bundle.path, replace(bundle.manifest, engines=engines))

    monkeypatch.setattr(checking, "build_bundle", build)
    target = Refusing("tensorrt-rtx", "flowturbo_trt")
    options = checking.CheckOptions(tmp_path, "cpu", "tiny", ("fp32",))
    tries = list(checking.first_runs(target, options, tmp_path))
    assert [described["compiled_for"] for described, _ in tries] == ["portable", "8.0", "8.9"]
    assert tries[0][0]["why"] == "compiled for another GPU"
    assert tries[-1][0]["runs"]
    entry = {"target": "tensorrt-rtx", "status": "ran", "plans": [described for described, _ in tries]}
    assert gpu_check.answer(entry) == (
        "TensorRT for RTX loads and runs its plans on this GPU: yes (portable: no, compiled for another "
        "GPU; 8.0: no, compiled for another GPU; 8.9: yes)"
    )


def test_answers() -> None:
    question = "TensorRT for RTX loads and runs its plans on this GPU"
    assert gpu_check.answer(None) == f"{question}: not tried"
    missing = {"status": "not installed", "why": "no module"}
    assert gpu_check.answer(missing) == f"{question}: not installed (no module)"


@pytest.mark.parametrize("ran", [True, False])
def test_exit_status(ran: bool) -> None:
    """0 only if something ran on a GPU and all of it holds."""
    entry: dict[str, Any] = {"status": "not installed"}
    if ran:
        entry = {"status": "ran", "checks": [{"status": "passed"}, {"status": "not run"}]}
    found = {"answer": "", "dry_run": False, "targets": [entry]}
    assert gpu_check.report(found) == (0 if ran else 3)
    if ran:
        entry["checks"].append({"status": "failed"})
        assert gpu_check.report(found) == 3


def test_missing_backends_are_said(tmp_path: Path) -> None:
    target = Target("tensorrt", "no_such_module")
    (entry,) = checking.check_target("tensorrt", target, checking.CheckOptions(tmp_path), lambda line: None)
    assert (entry["status"], entry["why"]) == ("not installed", "No module named 'no_such_module'")


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (("--backend", "onnxruntime-cpu"), 2, "onnxruntime-cpu does not run on cuda; known are tensorrt-rtx"),
        (("--backend", "tensorrt", "--device", "cpu"), 2, "tensorrt does not run on cpu; known are"),
        (("--device", "cuda:99"), 3, "no GPU backend ran: device cuda:99"),
        (("--model", "SiT-Q"), 2, "'SiT-Q' is not one of"),
    ],
)
def test_mistakes(run: Run, words: tuple[str, ...], status: int, complaint: str, tmp_path: Path) -> None:
    result = run(*words, status=status)
    assert complaint in result.output.replace("\n", " ")
    assert not (tmp_path / "gpu_check.json").exists()


def test_dry_runs_stay_out_of_the_results() -> None:
    result = CliRunner().invoke(gpu_check.main, ["--device", "cpu"])
    assert result.exit_code == 2
    assert "give --out" in result.output
