"""`flowturbo_trt tune`: the files, the text, the budget and what it writes, and mistakes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.tests.bundles import changed_copy, latents
from flowturbo_trt.tests.calibration.tune import steady

ROOT = Path(__file__).parents[2]
MODULE = "flowturbo_trt.commands.tune"
SMALL = (
    *("--trajectories", 6, "--held-out", 3, "--evaluations", 4, "--refined", 2, "--start", 12),
    *("--rounds", 1, "--children", 6, "--reference", "H8", "--threads", 1),
)


@pytest.fixture(autouse=True)
def _steady_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady.MEASURE, steady.measure)


def test_the_front(document: Callable[..., dict[str, Any]], tiny_bundle: Path, here: Path) -> None:
    found = document("tune", tiny_bundle, "--out", "new/tuned", *SMALL)
    assert found.pop("outputs") == ["new/tuned/tune.json", "new/tuned/tune.png"]
    assert json.loads((here / "new" / "tuned" / "tune.json").read_text(encoding="utf-8")) == found
    assert Image.open(here / "new" / "tuned" / "tune.png").size == (1080, 720)
    assert found["baseline"]["schedule"] == "H1P1R1"
    assert found["baseline"]["error_of_baseline"] == 1
    assert found["baseline"]["evaluations"] == {"predictor": 3, "refiner": 2}
    engines = found["engines"]["tiny"]
    assert engines["ms_per_evaluation"] == pytest.approx({"predictor guided": 10, "refiner guided": 2})
    assert engines["ms_overhead"] == pytest.approx(4)
    assert (found["winner"], found["nearest"], found["save_to"]) == (None, [], None)
    assert (engines["backend"], engines["device"], engines["provider"]) == ("onnxruntime", "cpu", None)
    assert (engines["is_stable"], found["threads"]) == (True, 1)
    times = [row["ms_per_image"] for row in found["front"]]
    assert len(times) >= 3
    assert times == sorted(times)


def test_a_budget_takes_a_winner_into_the_bundle(
    run: Callable[..., Result], document: Callable[..., dict[str, Any]], tiny_copy: Path, here: Path
) -> None:
    words = ("tune", tiny_copy, "--out", "tuned", *SMALL)
    front = document(*words)["front"]
    budget = (front[1]["ms_per_image"] + front[2]["ms_per_image"]) / 2
    # The journal has it all: another budget takes no search.
    found = document(*words, "--budget-ms", budget)
    assert found["winner"] == front[1]
    assert Bundle.open(tiny_copy).manifest.default_schedule == "H1P1R1"
    result = run(*words, "--budget-ms", budget, "--save")
    assert f"{front[1]['schedule']} is the default schedule of {tiny_copy} now." in result.stderr
    written = json.loads((here / "tuned" / "tune.json").read_text(encoding="utf-8"))
    assert written["save_to"] == str(tiny_copy)
    assert Bundle.open(tiny_copy).manifest.default_schedule == front[1]["schedule"]
    run("sample", tiny_copy, "--labels", "1", "--output-latents", "x.npy")
    from flowturbo_trt.runtime.pipeline import Pipeline

    with Pipeline.load(tiny_copy, threads=1) as pipeline:
        expected = latents(pipeline, [1], front[1]["schedule"])
    np.testing.assert_allclose(np.load(here / "x.npy"), expected, rtol=1e-5, atol=1e-6)
    assert document(*words, "--budget-error", front[-1]["error"])["winner"] == front[-1]


def test_the_winner_may_be_of_another_bundle(
    run: Callable[..., Result],
    tiny_bundle: Path,
    tiny_copy: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its schedule goes into that bundle, the first one stays as it was."""

    def measure(calls: Any, stability: Any, *, pause: float = 0.0) -> Any:
        found = steady.measure(calls, stability)
        slower = steady.measure(calls, stability, slower=3)
        return {name: (slower if name.startswith("tiny ") else found)[name] for name in calls}

    monkeypatch.setattr(steady.MEASURE, measure)
    before = (tiny_bundle / "manifest.json").read_bytes()
    result = run("tune", tiny_bundle, "--also", tiny_copy, "--out", "t", *SMALL, "--budget-ms", 9, "--save")
    assert "on copy." in result.stdout
    assert f"the default schedule of {tiny_copy} now" in result.stderr
    assert (tiny_bundle / "manifest.json").read_bytes() == before
    assert Bundle.open(tiny_copy).manifest.default_schedule != "H1P1R1"


def test_a_bundle_that_cannot_be_saved_into_takes_nothing_away(
    run: Callable[..., Result], tiny_copy: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rebuilt(bundle: Bundle, schedule: object, *, default: bool) -> None:
        assert {"journal.jsonl", "tune.json", "tune.png"} <= {path.name for path in (here / "t").iterdir()}
        raise BundleError(f"{bundle.path}: was rebuilt meanwhile")

    monkeypatch.setattr(f"{MODULE}.save_schedule", rebuilt)
    result = run("tune", tiny_copy, "--out", "t", *SMALL, "--budget-ms", 99, "--save", status=1)
    assert result.stderr.endswith(f"error: {tiny_copy}: was rebuilt meanwhile\n")
    assert "For 99 ms an image: " in result.stdout


def test_a_bundle_that_may_not_be_written_begins_nothing(
    fails: Callable[..., str],
    tiny_bundle: Path,
    tiny_copy: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any of them may become the winner's."""

    def check(bundle: Bundle) -> None:
        if bundle.path == tiny_copy:
            raise BundleError(f"{bundle.path}: may not be written to")

    monkeypatch.setattr(f"{MODULE}.check_writable", check)
    words = ("tune", tiny_bundle, "--also", tiny_copy, "--out", "t", *SMALL, "--budget-ms", 9)
    assert fails(*words, "--save") == f"{tiny_copy}: may not be written to"
    assert not (here / "t").exists()


def test_a_budget_that_nothing_meets(run: Callable[..., Result], tiny_copy: Path, here: Path) -> None:
    before = (tiny_copy / "manifest.json").read_bytes()
    result = run("tune", tiny_copy, "--out", "t", *SMALL, "--budget-ms", 0.001, "--save", status=3)
    assert "Nothing meets 0.001 ms an image. Nearest: " in result.stdout
    found = json.loads((here / "t" / "tune.json").read_text(encoding="utf-8"))
    assert found["winner"] is None
    assert len(found["nearest"]) == 3
    assert found["nearest"][0] == found["front"][0]
    assert (tiny_copy / "manifest.json").read_bytes() == before


def test_without_a_refiner(document: Callable[..., dict[str, Any]], tiny_bundle: Path, here: Path) -> None:
    def drop(data: dict[str, Any]) -> None:
        data["engines"] = [e for e in data["engines"] if not e["network"].startswith("refiner")]
        data["default_schedule"] = "H2"
        del data["programs"]["H1P1R1"]

    found = document("tune", changed_copy(tiny_bundle, here, drop), "--out", "t", *SMALL)
    assert found["baseline"]["schedule"] == "H2"
    assert {network for row in found["front"] for network in row["evaluations"]} == {"predictor"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--reference", "H2"], "reference H2: has 4 evaluations of the predictor, candidates have up to 4"),
        (["--latency-batch", "2"], "batch 2: not built in all bundles"),
        (["--budget-ms", "-1"], "a budget of ms -1.0: expected more than 0"),
        (["--trajectories", "0"], "trajectories is 0, expected at least 1"),
        (["--guidance", "nan"], "guidance is"),
        (["--backend", "openvino"], "openvino"),
        (["--also", "nowhere"], "nowhere: no bundle here"),
        (["--extractor", "e.onnx", "--images", "i", "--fid-num", "1"], "fid num is 1, expected at least 2"),
        (["--extractor", "none.onnx", "--images", "none"], "none.onnx"),
    ],
    ids=" ".join,
)
def test_mistakes_begin_nothing(
    fails: Callable[..., str], tiny_bundle: Path, here: Path, words: list[str], expected: str
) -> None:
    assert expected in fails("tune", tiny_bundle, "--out", "t", *SMALL, *words)
    assert not (here / "t" / "tune.json").exists()


def test_journals_of_others(
    run: Callable[..., Result], fails: Callable[..., str], tiny_bundle: Path, here: Path
) -> None:
    words = ("tune", tiny_bundle, "--out", "t", *SMALL)
    run(*words, "--rounds", 0)
    assert "journal.jsonl: is of a search with rounds 0, this one has 1" in fails(*words)
    (here / "t" / "journal.jsonl").write_text("mine\n")
    assert "journal.jsonl: line 1 is no record of a search" in fails(*words)
    assert (here / "t" / "journal.jsonl").read_text() == "mine\n"


@pytest.mark.parametrize(
    "words", [["--save"], ["--extractor", "e.onnx"], ["--max-seconds", "0"]], ids=" ".join
)
def test_wrong_usage(run: Callable[..., Result], tiny_bundle: Path, here: Path, words: list[str]) -> None:
    assert "Error: " in run("tune", tiny_bundle, "--out", "t", *words, status=2).stderr


def test_no_torch_is_needed() -> None:
    probe = (
        "import sys; import flowturbo_trt.commands.tune; "
        "print([name for name in ('torch', 'onnx', 'diffusers', 'torchmetrics') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
