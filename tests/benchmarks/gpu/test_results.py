"""Result files in slices, and the cases that are left."""

import json
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.benchmarks.gpu.cases import Case, all_cases, merge, unfinished
from flowturbo_trt.benchmarks.gpu.results import ResultsError, open_results, save_results

GPU = {"name": "NVIDIA H200", "capability": [9, 0], "memory_bytes": 150_000_000_000}


def test_a_file_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "new" / "found.json"
    document = open_results(path, GPU)
    assert document["device"] == GPU
    assert not document["dry_run"]
    save_results(path, {**document, "cases": [1]})
    assert open_results(path, GPU) == {**document, "cases": [1]}
    assert [file.name for file in path.parent.iterdir()] == ["found.json"]


@pytest.mark.parametrize("other", [None, {**GPU, "name": "NVIDIA L4"}])
def test_figures_of_two_machines_are_kept_apart(tmp_path: Path, other: dict[str, Any] | None) -> None:
    path = tmp_path / "found.json"
    save_results(path, open_results(path, GPU))
    with pytest.raises(ResultsError, match=r"its device is .*; move it away, or give another --out"):
        open_results(path, other)


def test_versions_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    document = open_results(path, GPU)
    save_results(path, {**document, "versions": document["versions"] | {"torch": "1.0"}})
    with pytest.raises(ResultsError, match=r"its versions is .*'torch': '1.0'"):
        open_results(path, GPU)


def test_file_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text("{")
    with pytest.raises(ResultsError, match="not JSON"):
        open_results(path, GPU)


def test_a_file_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    save_results(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_results(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def entry(case: Case, *names: str) -> dict[str, Any]:
    return {**vars(case), "contestants": {name: {} for name in names}}


def test_cases() -> None:
    """Those that share compiled networks follow each other."""
    cases = all_cases("SiT-XL/2", ("H1P5R3", "AB2x8"), (1, 2), ("fp16", "bf16"))
    assert [(c.precision, c.batch, c.schedule) for c in cases[:3]] == [
        ("fp16", 1, "H1P5R3"),
        ("fp16", 1, "AB2x8"),
        ("fp16", 2, "H1P5R3"),
    ]
    assert len(cases) == 8
    done = [entry(cases[0], "engines", "torch"), entry(cases[1], "engines")]
    assert list(unfinished(cases, done, ["engines", "torch"])) == cases[1:]
    assert list(unfinished(cases, done, ["engines"])) == cases[2:]


def test_a_case_that_is_measured_again_replaces_the_old() -> None:
    first, second = Case("m", "H1", 1, "fp16"), Case("m", "H1", 2, "fp16")
    entries = merge(merge([], entry(second, "old")), entry(first, "old"))
    assert [found["batch"] for found in entries] == [1, 2]
    entries = merge(entries, entry(second, "new"))
    assert [list(found["contestants"]) for found in entries] == [["old"], ["new"]]
