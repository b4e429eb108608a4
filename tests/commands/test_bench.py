"""`bench` on the tiny bundle: what is measured is real, how long it takes is not looked at."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation import torch_reference
from flowturbo_trt.evaluation.speed import benchmark
from flowturbo_trt.evaluation.speed.latency import Stability, Timing
from flowturbo_trt.evaluation.speed.startup import Startup, Work
from flowturbo_trt.tests.bundles import edit_manifest

Run = Callable[..., Result]
QUICK = ("--max-seconds", 0.02, "--threads", 1)


@pytest.fixture(autouse=True)
def works(monkeypatch: pytest.MonkeyPatch) -> list[Work]:
    """Start no processes: tests/evaluation/test_startup.py does. Lists what would have been started."""
    asked: list[Work] = []

    def measure_startup(work: Work) -> Startup:
        asked.append(work)
        return Startup(0.5, 5, 80_000_000, None)

    monkeypatch.setattr(benchmark, "measure_startup", measure_startup)
    monkeypatch.setattr(benchmark, "QUIET_SECONDS", 0.001)
    return asked


def test_document(document: Callable[..., dict[str, Any]], tiny_bundle: Path, works: list[Work]) -> None:
    found = document(
        "bench", tiny_bundle, *QUICK, "--schedule", "H1P1R1", "--schedule", "E2", "--guidance", 3
    )
    assert {"machine", "versions", "stability", "guidance", "backend", "device", "threads"} <= set(found)
    assert found["guidance"] == 3
    cases = [(result["schedule"], result["batch"]) for result in found["results"]]
    assert cases == [("H1P1R1", 1), ("H1P1R1", 3), ("E2", 1), ("E2", 3)]
    assert [(work.schedule, work.batch, work.guidance) for work in works] == [(*case, 3.0) for case in cases]
    for result in found["results"]:
        assert result["precision"] == "fp32"
        assert result["variant"] == "guided"
        assert result["ms_per_image"] == pytest.approx(result["median_ms"] / result["batch"])
        assert result["images_per_second"] == pytest.approx(1000 / result["ms_per_image"])
        assert 0 < result["median_ms"] <= result["p90_ms"] <= result["p99_ms"]
        assert sum(result["shares"].values()) == pytest.approx(1)
        assert result["against"] == {}
    first, last = found["results"][0], found["results"][-1]
    assert first["evaluations"] == {"predictor": 3, "refiner": 2}
    conditioners = {"predictor_conditioner", "refiner_conditioner"}
    assert set(first["shares"]) == {"predictor", "refiner", "decoder", "rest"} | conditioners
    assert set(last["shares"]) == {"predictor", "predictor_conditioner", "decoder", "rest"}
    assert 0 < last["weight_bytes"] < first["weight_bytes"]
    # The default schedule takes all engines there are, conditioners included.
    files = Bundle.open(tiny_bundle).manifest.files.values()
    assert first["weight_bytes"] == sum(record.bytes for record in files)


def test_fused_bundle(document: Callable[..., dict[str, Any]], tiny_fused_bundle: Path) -> None:
    (result,) = document("bench", tiny_fused_bundle, *QUICK, "--batch", 1)["results"]
    assert set(result["shares"]) == {"predictor", "refiner", "decoder", "rest"}


def test_variants_of_a_mixed_schedule_are_told_apart(
    run: Run, document: Callable[..., dict[str, Any]], golden_bundle: Path
) -> None:
    words = ("bench", golden_bundle, *QUICK, "--batch", 1, "--schedule", "H1P1R1:guided=0..0.5")
    (result,) = document(*words)["results"]
    assert result["evaluations"] == {"predictor guided": 2, "predictor unguided": 1, "refiner": 2}
    assert {"predictor guided", "predictor unguided", "predictor_conditioner"} <= set(result["shares"])
    text = run(*words).stdout
    assert "2 predictor guided + 1 predictor unguided + 2 refiner)" in text


def test_text(run: Run, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timing, "stable", True)
    text = run("bench", tiny_bundle, *QUICK, "--batch", 3).stdout
    assert "H1P1R1, batch 3 (guided, fp32, 3 predictor + 2 refiner)" in text
    for word in ("median", "p90", "images/s", "shares", "overhead", "start      0.50 s", "80 MB"):
        assert word in text
    assert "NOT STABLE" not in text


def test_a_high_percentile_takes_many_samples(run: Run, tiny_bundle: Path) -> None:
    text = run("bench", tiny_bundle, *QUICK, "--batch", 1).stdout
    (line,) = (line for line in text.splitlines() if "latency" in line)
    assert ("p99" in line) == (int(line.split(" samples")[0].split()[-1]) >= 100)


def test_unstable_is_said(run: Run, tiny_bundle: Path) -> None:
    result = run("bench", tiny_bundle, "--max-seconds", 1e-6, "--batch", 1, "--threads", 1)
    assert "1 samples; NOT STABLE: the median is not known" in result.stdout


def test_against_torch(
    document: Callable[..., dict[str, Any]], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both run the same program to the same latents; what compiling costs is not for this test."""
    monkeypatch.setattr(torch_reference.torch, "compile", _as_it_is)
    found = document("bench", tiny_bundle, *QUICK, "--batch", 3, "--against", "torch,torch-compile")
    (result,) = found["results"]
    assert set(result["against"]) == {"torch", "torch-compile"}
    for other in result["against"].values():
        assert other["relative_l2"] < 1e-5
        assert other["ratio"] == pytest.approx(other["median_ms"] / result["median_ms"])


def _as_it_is(module: Any, **options: Any) -> Any:
    return module


def test_against_in_text(run: Run, tiny_bundle: Path) -> None:
    text = run("bench", tiny_bundle, *QUICK, "--batch", 1, "--against", "torch").stdout
    assert "against    torch: median" in text
    assert "× the" in text
    assert "(relative L2)" in text


def test_compiler_that_fails_is_one_line(
    run: Run, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(module: Any, **options: Any) -> Any:
        raise RuntimeError("No working C++ compiler found.\n  Traceback:\n  …")

    monkeypatch.setattr(torch_reference.torch, "compile", fail)
    text = run(
        "bench", tiny_bundle, *QUICK, "--batch", 1, "--against", "torch-compile,torch", status=1
    ).stdout
    (line,) = (line for line in text.splitlines() if "torch-compile" in line)
    assert line.endswith("not measured, RuntimeError: No working C++ compiler found. Traceback: …")
    assert "against    torch: median" in text


def test_stripped_bundle(fails: Callable[..., str], tiny_copy: Path) -> None:
    """Said before anything is timed."""
    edit_manifest(tiny_copy, lambda manifest: manifest.update(graphs=[]))
    words = fails("bench", tiny_copy, *QUICK, "--against", "torch")
    assert "float32 graphs, which were stripped; measure the bundle without --against, or build it" in words


def test_absent_torch_is_named(
    fails: Callable[..., str], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "flowturbo_trt.evaluation.torch_reference")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert fails("bench", tiny_bundle, "--against", "torch") == (
        "torch cannot be measured: torch is not installed; pip install 'flowturbo_trt[export]'"
    )


def test_out(run: Run, document: Callable[..., dict[str, Any]], tiny_bundle: Path, here: Path) -> None:
    printed = document("bench", tiny_bundle, *QUICK, "--batch", 1, "--out", "result.json")
    assert json.loads((here / "result.json").read_text()) == printed


def test_out_that_cannot_be_written(fails: Callable[..., str], tiny_bundle: Path, here: Path) -> None:
    assert "cannot be written" in fails("bench", tiny_bundle, "--out", "nowhere/result.json")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--max-seconds", -1), "-1.0 is not in the range x>0"),
        (("--max-seconds", "nan"), "is no number"),
        (("--precision-of-median", 0), "is not in the range"),
        (("--threads", -2), "-2 is not in the range"),
        (("--against", "torch,jax"), "'jax' is not known; known are torch, torch-compile"),
    ],
)
def test_wrong_usage(run: Run, tiny_bundle: Path, words: tuple[object, ...], complaint: str) -> None:
    result = run("bench", tiny_bundle, *words, status=2)
    assert complaint in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--batch", 2), "batch 2: the bundle was built for 1, 3; take one of these, or build it with"),
        (("--batch", -1), "batch -1: the bundle was built for 1, 3"),
        (("--schedule", "H1X"), "H1X"),
        (("--guidance", "nan"), "guidance is nan"),
        (("--backend", "abacus"), "backend 'abacus' is not known; use onnxruntime"),
        (("--device", "tpu"), "unknown device 'tpu'"),
    ],
)
def test_mistakes(
    fails: Callable[..., str], tiny_bundle: Path, words: tuple[object, ...], complaint: str
) -> None:
    assert complaint in fails("bench", tiny_bundle, *words)


def test_refiner_that_is_not_there_shows_before_timing(
    fails: Callable[..., str], tiny_copy: Path, works: list[Work]
) -> None:
    def remove(data: dict[str, Any]) -> None:
        data["programs"] = {"H2": data["programs"]["H2"]}
        data["default_schedule"] = "H2"
        data["engines"] = [engine for engine in data["engines"] if engine["network"] != "refiner"]

    edit_manifest(tiny_copy, remove)
    complaint = fails("bench", tiny_copy, *QUICK, "--schedule", "H2", "--schedule", "H1R1")
    assert "the bundle has no guided refiner engine for onnxruntime" in complaint
    assert works == []


def test_stability_defaults_are_the_class_s(run: Run) -> None:
    text = run("bench", "--help").stdout
    assert str(Stability.precision) in text
    assert str(Stability.seconds) in text
