"""The whole of `gpu-bench` as a dry run, on bundles of the tests; no time is looked at."""

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from flowturbo_trt.benchmarks import gpu_bench
from flowturbo_trt.benchmarks.gpu import benching, contestants
from flowturbo_trt.benchmarks.gpu.bundles import Wanted, Weights
from flowturbo_trt.benchmarks.gpu.cases import Case
from flowturbo_trt.benchmarks.gpu.targets import DRY_TARGETS, Target
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.speed.latency import Stability

Run = Callable[..., Result]
ONCE = Stability(at_least=1, at_most=1)
NAMES = ["onnxruntime-cpu, hoisted", "onnxruntime-cpu, fused", "torch"]
CASE = Case("tiny", "H1P1R1", 3, "fp32")


@pytest.fixture(autouse=True)
def built(tiny_bundle: Path, tiny_fused_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[Wanted]:
    """Take the tests' bundles in place of those that are built; lists what was to be built."""
    asked: list[Wanted] = []

    def build(weights: Weights, out: Path, wanted: Wanted, sibling: Path | None) -> Bundle:
        asked.append(wanted)
        return Bundle.open(tiny_fused_bundle if wanted.conditioning == "fused" else tiny_bundle)

    weights = Weights(Path("p"), Path("r"), Path("d"), Path("c"))
    monkeypatch.setattr(benching, "build_bundle", build)
    monkeypatch.setattr(benching, "random_weights", lambda folder, model: weights)
    monkeypatch.setattr(contestants, "SHORT", ONCE)
    return asked


def options(folder: Path, against: tuple[str, ...] = ("torch",)) -> benching.BenchOptions:
    return benching.BenchOptions(folder, "cpu", against=against, stability=ONCE)


def bench(
    folder: Path, targets: dict[str, Target] = DRY_TARGETS, against: tuple[str, ...] = ("torch",)
) -> benching.Bench:
    return benching.Bench(targets, options(folder, against), None, lambda line: None)


def test_numbers_that_are_none_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestants.Engines, "latents", lambda self: np.full((3, 2, 4, 4), np.nan))
    entry = bench(tmp_path).measure(CASE)
    assert entry["contestants"][NAMES[0]] == {"failure": "its latents are not finite"}
    assert entry["contestants"]["torch"]["relative_l2"] == 0


def test_contestants_run_the_same(tmp_path: Path, built: list[Wanted]) -> None:
    entry = bench(tmp_path).measure(CASE)
    assert list(entry["contestants"]) == NAMES
    json.dumps(entry, allow_nan=False)
    for found in entry["contestants"].values():
        assert found["relative_l2"] < 1e-5
        assert found["median_ms"] == pytest.approx(3 * found["ms_per_image"])
        assert found["first_run_seconds"] > 0
        assert found["device_megabytes"] is None
        assert found["share_of_floor"] is None
    hoisted, fused, torch = (entry["contestants"][name] for name in NAMES)
    networks = {"predictor", "refiner", "decoder", "rest"}
    assert set(fused["stages_ms"]) == networks
    assert set(hoisted["stages_ms"]) == networks | {"predictor_conditioner", "refiner_conditioner"}
    assert torch["stages_ms"] is None
    assert entry["counted"]["weight_megabytes_saved"] > 0
    # Engines in the case's precision, and the graphs that all come from.
    assert [(wanted.conditioning, wanted.precision) for wanted in built] == [
        ("fused", "fp32"),
        ("hoisted", "fp32"),
    ]


def test_engines_are_compiled_from_the_float32_graphs(tmp_path: Path, built: list[Wanted]) -> None:
    bench(tmp_path, against=()).measure(Case("tiny", "H1P1R1", 1, "fp16"))
    assert [(wanted.conditioning, wanted.precision) for wanted in built] == [
        ("fused", "fp32"),
        ("hoisted", "fp32"),
        ("hoisted", "fp16"),
        ("fused", "fp16"),
    ]


def test_what_one_cannot_do_is_its_failure_alone(tmp_path: Path) -> None:
    targets = {"absent": Target("absent", "no_such_module"), **DRY_TARGETS}
    entry = bench(tmp_path, targets).measure(CASE)
    failure = {"failure": "not installed: No module named 'no_such_module'"}
    assert entry["contestants"]["absent, hoisted"] == failure
    assert set(entry["contestants"]["torch"]) > {"median_ms"}


def test_floors_are_of_known_gpus(tmp_path: Path) -> None:
    """The counts know the GPU by its name, wherever the contestants ran."""
    found = benching.Bench(DRY_TARGETS, options(tmp_path), "NVIDIA H200", lambda line: None)
    entry = found.measure(Case("tiny", "H1P1R1", 1, "fp16"))
    assert entry["floor_ms"]["hoisted"] > 0
    hoisted = entry["contestants"]["onnxruntime-cpu, hoisted"]
    assert hoisted["share_of_floor"] == pytest.approx(entry["floor_ms"]["hoisted"] / hoisted["median_ms"])


def test_slices(tmp_path: Path) -> None:
    """What is measured stays, and what is left is told."""
    cases = [CASE, Case("tiny", "H2", 1, "fp32"), Case("tiny", "E1", 1, "fp32")]
    path, given = tmp_path / "gpu_bench.json", options(tmp_path)
    # Every look at the clock is a minute later: a case takes one, and the time goes for the second.
    clock = count(step=60)

    def measure(minutes: float | None, *, again: bool = False) -> tuple[dict[str, Any], int]:
        def now() -> float:
            return float(next(clock))

        return gpu_bench.measure_all(
            cases, DRY_TARGETS, given, path, None, minutes=minutes, again=again, now=now
        )

    document, left = measure(3.5)
    assert left == 2
    assert [entry["schedule"] for entry in document["cases"]] == ["H1P1R1"]
    assert gpu_bench.report(document, left) == 3
    first = document["cases"][0]
    document, left = measure(None)
    assert left == 0
    assert {entry["schedule"] for entry in document["cases"]} == {"H1P1R1", "H2", "E1"}
    assert first in document["cases"]
    assert json.loads(path.read_text()) == document
    document, _ = measure(None, again=True)
    assert len(document["cases"]) == 3
    assert first not in document["cases"]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def measure_all(*arguments: Any, **named: Any) -> tuple[dict[str, Any], int]:
        asked.append((arguments, named))
        return {"dry_run": True, "cases": []}, 0

    monkeypatch.setattr(gpu_bench, "measure_all", measure_all)
    words = ["--device", "cpu", "--out", str(tmp_path), "--batch", "16", "--schedule", "H2", "--minutes", "5"]
    words += ["--precision", "bf16", "--against", "torch", "--model", "tiny", "--target", "8.9"]
    result = CliRunner().invoke(gpu_bench.main, words)
    assert result.exit_code == 3
    assert "no GPU backend ran: this was a dry run on the CPU" in result.stdout
    ((cases, targets, given, path, gpu), named) = asked[0]
    assert cases == [Case("tiny", "H2", 16, "bf16")]
    assert (targets, path, gpu) == (DRY_TARGETS, tmp_path / "gpu_bench.json", None)
    assert (given.batches, given.against, given.compiled_for) == ((1, 2, 4, 8, 16), ("torch",), ("8.9",))
    assert named == {"minutes": 5, "again": False}


@pytest.mark.parametrize(("failed", "left", "status"), [(False, 0, 0), (False, 1, 3), (True, 0, 3)])
def test_exit_status(failed: bool, left: int, status: int) -> None:
    """0 only if engines ran on a GPU and no case is left; torch alone is no backend."""
    engines = {"failure": "not installed"} if failed else {"median_ms": 1.0}
    entry = {"contestants": {"tensorrt-rtx, hoisted": engines, "torch": {"median_ms": 2.0}}}
    assert gpu_bench.report({"dry_run": False, "cases": [entry]}, left) == status


def test_no_gpu(tmp_path: Path) -> None:
    result = CliRunner().invoke(gpu_bench.main, ["--device", "cuda:99", "--out", str(tmp_path)])
    assert result.exit_code == 3
    assert result.output.startswith("no GPU backend ran: device cuda:99")
    assert not list(tmp_path.iterdir())
