"""The README's tables about GPUs."""

import json
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.benchmarks import tables
from flowturbo_trt.benchmarks.gpu.tables import render

HEAD = {
    "machine": {"gpu": "NVIDIA H200, 580.1", "cores": 16, "cpu": "Xeon"},
    "versions": {"torch": "2.11"},
    "device": {"name": "NVIDIA H200"},
    "dry_run": False,
}


def engines(ms: float, **facts: Any) -> dict[str, Any]:
    base = {
        "median_ms": ms,
        "share_of_floor": 5 / ms,
        "load_seconds": 1,
        "first_run_seconds": 2,
        "relative_l2": 1e-3,
    }
    return {**base, "device_megabytes": 1234, "stages_ms": None, **facts}


CASE = {"model": "SiT-XL/2", "schedule": "H1P5R3", "batch": 1, "precision": "fp16", "guidance": 1.5}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return tmp_path


def write(folder: Path, name: str, **content: Any) -> list[str]:
    (folder / f"{name}.json").write_text(json.dumps(HEAD | content))
    return render(name, folder).splitlines()


@pytest.mark.parametrize("name", ["gpu_check", "gpu_bench"])
def test_without_figures_the_readme_says_so(folder: Path, name: str) -> None:
    target = name.replace("_", "-")
    said = f"Not measured yet: `make {target}` writes these figures on a machine with an NVIDIA GPU.\n"
    text = f"<!-- table:{name} -->\nold\n<!-- end -->"
    assert tables.with_tables(text) == f"<!-- table:{name} -->\n{said}<!-- end -->"
    write(folder, name, dry_run=True, cases=[CASE], targets=[])
    assert tables.render(name) == said


def test_checks(folder: Path) -> None:
    checks = [{"name": n, "status": s} for n, s in (("a", "passed"), ("b", "failed"), ("c", "not run"))]
    targets = [
        {"target": "tensorrt-rtx", "status": "ran", "checks_left": 2, "checks": checks},
        {"target": "tensorrt", "status": "not installed", "why": "no module"},
    ]
    lines = write(folder, "gpu_check", answer="It runs", targets=targets)
    assert lines[0] == "It runs."
    assert lines[2:6] == [
        "| backend |  | passed | failed | not run | failed checks |",
        "| --- | --- | --- | --- | --- | --- |",
        "| tensorrt-rtx | runs; 2 groups of checks not reached | 1 | 1 | 1 | b |",
        "| tensorrt | not installed: no module | – | – | – | – |",
    ]
    assert lines[-1] == "NVIDIA H200, 580.1, 16 cores of Xeon; torch 2.11. Written by `make gpu-check`."


def test_times(folder: Path) -> None:
    found = {
        "rtx, hoisted": engines(10.0, stages_ms={"rest": 1.0, "predictor": 9.0}),
        "rtx, fused": {"failure": "no"},
        "torch-compile": engines(20.0, graphs_compiled=3, graphs_from_cache=1, first_run_seconds=90),
    }
    warm = {"torch-compile": engines(40.0, graphs_compiled=0, graphs_from_cache=0, first_run_seconds=0)}
    cases = [
        {**CASE, "floor_ms": {"hoisted": 5.0, "fused": 6.0}, "contestants": found},
        {**CASE, "batch": 2, "floor_ms": None, "contestants": warm},
    ]
    text = "\n".join(write(folder, "gpu_bench", cases=cases))
    for line in (
        "| H1P5R3 | 1 | fp16 | 10.00 | – | 20.00 | 5.00 | 50% |",
        "| H1P5R3 | 2 | fp16 | – | – | 40.00 | – | – |",
        "| stages, ms per batch | batch |  |  | predictor | rest |",
        "| H1P5R3 | 1 | fp16 | rtx, hoisted | 9.00 | 1.00 |",
        "| rtx, hoisted | 1.0 | 2.0 | – | 1234 | 1.0e-03 |",
        "| torch-compile | 1.0 | 90.0 | 3, 1 from torch's cache | 1234 | 1.0e-03 |",
        "SiT-XL/2, guidance 1.5; torch 2.11. Written by `make gpu-bench`.",
    ):
        assert line in text
    assert text.count("\n| torch-compile |") == 1
