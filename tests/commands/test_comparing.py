"""`evaluate --compare`: the three files and what is printed, and mistakes that show at once."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from flowturbo_trt.commands import comparing
from flowturbo_trt.evaluation.comparison import timing
from flowturbo_trt.evaluation.comparison.options import ComparisonOptions
from flowturbo_trt.evaluation.quality import measures
from flowturbo_trt.tests.evaluation.comparison.comparisons import QUICK, small_options
from flowturbo_trt.tests.evaluation.comparison.pages import Page

Run = Callable[..., Result]


@pytest.fixture
def words(tiny_bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What makes a short comparison of two schedules; what is timed is timed three times."""
    really = timing.measure
    monkeypatch.setattr(timing, "measure", lambda calls, stability: really(calls, QUICK))
    monkeypatch.setattr(measures, "RESAMPLES", 5)
    options = small_options(tiny_bundle, here)
    compared = ["--compare", "H2,H1P1R1@0,0.25,0.5,1", "--compare", "H1H1", "--num", 12, "--baseline", "H2"]
    judged = ["--extractor", options.extractor, "--metric", "fid", "--threads", 1]
    return ["evaluate", tiny_bundle, options.reference, *judged, *compared]


def test_three_files_and_one_document(
    run: Run, document: Callable[..., dict[str, Any]], words: list[Any], here: Path
) -> None:
    result = run(*words, "--out", "report", "--max-seconds", 30)
    assert "H1H1: named more than once, compared once" in result.stderr
    assert "timing 2 schedules in turn, for 30 s at most" in result.stderr
    table = result.stdout.partition("\n\n")[0]
    assert table.count("\n") == 3
    assert table in (here / "report" / "table.md").read_text(encoding="utf-8")
    assert result.stdout.endswith("report/index.html: the whole report\n")
    # The second time everything is there but the latencies.
    printed = document(*words, "--out", "report")
    assert json.loads((here / "report" / "report.json").read_text(encoding="utf-8")) == printed
    assert [row["schedule"] for row in printed["rows"]] == ["H2", "H1P1R1@0,0.25,0.5,1"]
    assert printed["setting"]["count"] == printed["setting"]["endpoint_count"] == 12
    assert {"machine", "versions", "measured_at", "notes", "decoder_gflop", "shown"} <= set(printed)
    rows = Page((here / "report" / "index.html").read_text(encoding="utf-8")).rows
    values = [float(value) for _, value in rows[2][1:] if value is not None]
    figures = printed["rows"][1]["figures"]
    assert values == [
        3,
        2,
        *(figures[k]["value"] for k in ("gflop", "ms_per_image", "acceleration", "fid", "endpoint_error")),
    ]


def test_nothing_is_left_of_a_mistake(fails: Callable[..., str], words: list[Any], here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "index.html").write_text("my thesis")
    assert "holds files of another kind" in fails(*words, "--out", "mine")
    assert (here / "mine" / "index.html").read_text() == "my thesis"
    words = [*words, "--quiet", "--out", "report"]
    complaint = fails(*words, "--compare", "R2,H1X")
    assert complaint.startswith("2 of 5 schedules cannot run: R2: starts with R")
    assert "latency batch 2: the bundle was built for 1, 3" in fails(*words, "--latency-batch", 2)
    assert not (here / "report").exists()


def test_a_folder_is_needed(run: Run, words: list[Any]) -> None:
    assert "give a folder for it with --out" in " ".join(run(*words, status=2).stderr.split())


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_what_draws_the_page_is_asked_for_first(
    fails: Callable[..., str], words: list[Any], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in [name for name in sys.modules if name.startswith("flowturbo_trt.evaluation.comparison.p")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, missing, None)
    assert fails(*words, "--quiet", "--out", "report") == (
        f"a report needs {missing}, which is not installed; pip install 'flowturbo_trt[evaluate]'"
    )


def test_options_are_those_of_the_comparison(
    words: list[Any], run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is given reaches the comparison; what is not is its default."""
    asked: list[ComparisonOptions] = []

    def take(options: ComparisonOptions, *rest: Any) -> Any:
        asked.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "prepare", take)
    more = [
        "--guidance",
        1.25,
        "--seed",
        9,
        "--latency-batch",
        3,
        "--backend",
        "onnxruntime",
        "--device",
        "cpu",
    ]
    run(*words, *more, "--out", "report", status=130)
    (options,) = asked
    assert options.schedules == ("H2", "H1P1R1@0,0.25,0.5,1", "H1H1")
    assert (options.num, options.guidance, options.seed, options.baseline) == (12, 1.25, 9, "H2")
    assert (options.latency_batch, options.backend, options.device, options.threads) == (
        3,
        "onnxruntime",
        "cpu",
        1,
    )
    assert options.metrics == ("fid",)
    plain = partial(ComparisonOptions, Path(), Path(), Path(), ("H2",))
    assert (options.truth_schedule, options.truth_num) == (plain().truth_schedule, plain().truth_num)
