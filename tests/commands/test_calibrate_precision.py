"""`flowturbo_trt calibrate precision`: files, text, JSON, exit statuses, and mistakes."""

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flowturbo_trt.calibration.precision import quantize
from flowturbo_trt.calibration.precision.gate import judge
from flowturbo_trt.commands.group import cli
from flowturbo_trt.evaluation.speed.latency import Call, Stability, Timing
from flowturbo_trt.export.quantization import load_recipe
from flowturbo_trt.tests.bundles import changed_copy
from flowturbo_trt.tests.evaluation.quality.extractors import write_extractor

NAME = ("calibrate", "precision")
FEW = ("--rows", 3, "--trial-rows", 2, "--judged-rows", 4, "--threads", 1, "--max-seconds", 0.01)
QUICK = (*FEW, "--schedule", "H1P1R1", "--method", "maximum", "--smoothing", "none")
OUT = ("--out", "recipe.json")


def test_passed(document: Callable[..., dict[str, Any]], tiny_bundle: Path, here: Path) -> None:
    """With every file that can be asked for; FP8, whose speed is not claimed, passes by its errors."""
    files = (*OUT, "--figure", "heat.png", "--report", "gate.json", "--recording", "recorded")
    found = document(*NAME, tiny_bundle, "--kind", "fp8", *QUICK, *files, "--budget-error", 10)
    assert found["command"] == "calibrate precision"
    assert found["passed"] is True
    assert found["arrangement"] == "maximum, no smoothing"
    assert found["budgets"] == {"H1P1R1": 10}
    recipe = load_recipe(here / "recipe.json")
    assert (recipe.kind, recipe.passed) == ("fp8", True)
    assert len(recipe.layers["predictor guided"]) == 4
    assert json.loads((here / "gate.json").read_text(encoding="utf-8")) == found
    heat = json.loads((here / "heat.json").read_text(encoding="utf-8"))
    assert heat["groups"] == found["sensitivity"]["groups"]
    assert (here / "heat.png").stat().st_size > 10_000
    assert (here / "recorded" / "calibration.json").is_file()


def test_too_few_images_to_tell(run: Callable[..., Result], tiny_bundle: Path, here: Path) -> None:
    """Whether fewer are recognised takes hundreds."""
    words = (
        "--kind",
        "fp8",
        *QUICK,
        *OUT,
        "--budget-error",
        10,
        "--extractor",
        write_extractor(here / "e.onnx"),
    )
    result = run(*NAME, tiny_bundle, *words, status=3)
    assert "✗ H1P1R1, class agreement lost" in result.stdout
    assert "(surely at most 0.01; cannot be told with 4 images, raise --judged-rows)" in result.stdout
    assert "H1P1R1: Fréchet distance between both" in result.stdout


def test_passed_by_errors_alone(run: Callable[..., Result], tiny_bundle: Path, here: Path) -> None:
    """The last line says so; and what is not measured, and what rows do not cover, is said above."""
    words = (*QUICK, "--rows", 2, *OUT, "--budget-error", 10)
    text = run(*NAME, tiny_bundle, "--kind", "fp8", *words).stdout
    assert text.splitlines()[-1] == "passed by its errors, speed not measured: recipe.json"
    assert "speed not measured on onnxruntime: its CPU provider only emulates fp8" in text
    assert "2 of 3 values of label were recorded, spread over all; --rows 3 records each" in text
    assert load_recipe(here / "recipe.json").timed == ()


def slow(calls: Mapping[str, Call], stability: Stability) -> dict[str, Timing]:
    """Say that 8 bits take twice as long."""
    return {name: Timing((seconds,) * 6, stability) for name, seconds in (("f", 0.1), ("q", 0.2))}


def test_not_faster(
    run: Callable[..., Result], tiny_bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe is written and says so, the verdict is the last line, and exit status 3."""
    monkeypatch.setattr(quantize, "judge", partial(judge, timer=slow))
    result = run(*NAME, tiny_bundle, "--kind", "int8", *QUICK, *OUT, "--budget-error", 10, status=3)
    *_, batch1, batch3, last = result.stdout.splitlines()
    assert batch1.startswith("✗ H1P1R1 at batch 1, float32 ms / 8-bit ms")
    assert batch3.startswith("✗ H1P1R1 at batch 3, float32 ms / 8-bit ms")
    assert last == "did not pass: recipe.json is refused by `build` without --force"
    assert "int8, 4 layers; ranges by maximum, no smoothing" in result.stdout
    assert "velocity error by call, on the recorded inputs that ranges were chosen on" in result.stdout
    assert load_recipe(here / "recipe.json").passed is False


def test_budget_that_nothing_meets(run: Callable[..., Result], tiny_bundle: Path, here: Path) -> None:
    """The nearest candidates are named, with what they reach."""
    words = (*NAME, tiny_bundle, "--kind", "fp8", *QUICK, *OUT, "--budget-error", 1e-9, "-q")
    result = run(*words, status=3)
    assert result.stderr == ""
    (line,) = [text for text in result.stdout.splitlines() if text.startswith("nothing meets the budget")]
    assert line.count("predictor blocks.0.") == 3
    assert line.count("(H1P1R1 0.") == 3
    assert "put back to floating point: " in result.stdout
    assert "✗ H1P1R1, trajectory error" in result.stdout
    assert "speed not measured on onnxruntime: its CPU provider only emulates fp8" in result.stdout


def test_budget_that_is_met_without_its_margin(
    document: Callable[..., dict[str, Any]], run: Callable[..., Result], tiny_bundle: Path, here: Path
) -> None:
    """Of other noise it may be missed: so it is said, and not that nothing meets it."""
    words = (*NAME, tiny_bundle, "--kind", "fp8", *QUICK, *OUT)
    found = document(*words, "--budget-error", 10)
    least = min(group["trajectory"]["H1P1R1"] for group in found["sensitivity"]["groups"])
    text = CliRunner().invoke(cli, [*map(str, words), "--budget-error", str(1.05 * least)]).stdout
    assert "nothing meets the budget" not in text
    expected = (
        f"nothing is as far within the budget as other noise asks for (H1P1R1 {0.9 * 1.05 * least:.4g});"
    )
    assert expected in text


def test_default_budget_and_ways(
    document: Callable[..., dict[str, Any]], tiny_bundle: Path, here: Path
) -> None:
    """All methods, with smoothing and without; the budget from the schedule's own distance."""
    found = document(
        *NAME, tiny_bundle, "--kind", "fp8", *FEW, *OUT, "--reference", "H50", "--layers", "mlp.fc2"
    )
    assert len(found["arrangements"]) == 8
    assert found["budgets"]["H1P1R1"] == pytest.approx(0.5 * found["schedule_distances"]["H1P1R1"])
    assert [group["name"] for group in found["sensitivity"]["groups"]] == ["predictor blocks.0.mlp.fc2"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--networks", "decoder"), "network 'decoder': the schedules never call it; expected predictor or"),
        (("--layers", "mlp.fc9"), "layers 'mlp.fc9': the networks have none; known are attn.qkv"),
        (("--reference", "H2"), "H1P1R1: H2 is not twice as fine"),
        (("--schedule", "H1P1Z1"), "unknown step 'Z'"),
        (("--extractor", "none.onnx"), "none.onnx: no such file; give an extractor"),
        (("--out", "nowhere/recipe.json"), "nowhere/recipe.json: cannot be written"),
        (("--report", "nowhere/gate.json"), "nowhere/gate.json: cannot be written"),
        (("--recording", "full"), "holds notes.txt, which no recording made"),
        (("--extractor", "small.onnx"), "small.onnx: takes images of 4×4 only, these are 8×8"),
        (("--extractor", "small.onnx", "--judged-rows", "1"), "1 judged rows: a Fréchet distance needs 2"),
        (("--seed", str(2**64 - 1)), "3 recorded and 4 judged rows count up from it"),
        (("--guidance", "1", "--guidance", "4", "--judged-rows", "1"), "raise --judged-rows"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_mistakes(
    fails: Callable[..., str], tiny_bundle: Path, here: Path, words: tuple[str, ...], expected: str
) -> None:
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("mine")
    write_extractor(here / "small.onnx", shape=("batch", 4, 4, 3))
    recording = ("--recording", "recorded")
    assert expected in fails(*NAME, tiny_bundle, "--kind", "int8", *QUICK, *OUT, *recording, *words)
    assert not (here / "recipe.json").exists()
    assert not (here / "recorded").exists()


@pytest.mark.parametrize("full", ["recipe.json", "heat.png", "gate.json"])
def test_disk_that_is_full(fails: Callable[..., str], tiny_bundle: Path, here: Path, full: str) -> None:
    """When all is done: what was recorded can be used again."""
    (here / full).symlink_to("/dev/full")
    files = (*OUT, "--figure", "heat.png", "--report", "gate.json", "--budget-error", 10)
    found = fails(*NAME, tiny_bundle, "--kind", "fp8", *QUICK, *files)
    assert found.startswith(f"{full}: cannot be written (No space left on device); make room, and calibrate")


def test_another_models_recording(
    fails: Callable[..., str], run: Callable[..., Result], tiny_bundle: Path, here: Path
) -> None:
    words = ("--kind", "fp8", *QUICK, *OUT, "--recording", "recorded", "--budget-error", 10)
    run(*NAME, tiny_bundle, *words)

    def other(data: dict[str, Any]) -> None:
        data["sources"]["predictor"]["sha256"] = "0" * 64

    found = fails(*NAME, changed_copy(tiny_bundle, here, other), *words)
    assert found == "recorded: was recorded of another predictor than the bundle's; record this one's"
    found = fails(*NAME, tiny_bundle, *words, "--rows", 4)
    assert found.startswith("recorded: was recorded with rows 3, asked for is 4; ask for the same")


def test_stripped_bundle(fails: Callable[..., str], tiny_bundle: Path, here: Path) -> None:
    bundle = changed_copy(tiny_bundle, here, lambda data: data.update(graphs=[]))
    assert "no float32 graphs" in fails(*NAME, bundle, "--kind", "int8", *QUICK, *OUT)


@pytest.mark.parametrize(
    "words",
    [
        ("--kind", "int4"),
        ("--smoothing", "2"),
        ("--smoothing", "some"),
        ("--method", "median"),
        ("--budget-error", "0"),
        ("--rows", "0"),
        ("--figure", "heat.svg"),
        ("--figure", "recipe.png", "--report", "recipe.json"),
        ("--figure", "recipe.png"),
    ],
    ids=" ".join,
)
def test_wrong_usage(run: Callable[..., Result], here: Path, words: tuple[str, ...]) -> None:
    assert "Error: " in run(*NAME, "bundle", "--kind", "int8", *OUT, *words, status=2).stderr


def test_nothing_is_left_behind(
    run: Callable[..., Result], tiny_bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --recording, trajectories are gone when it is done; so are the engines of the gate."""
    temporary = here / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    run(*NAME, tiny_bundle, "--kind", "fp8", *QUICK, *OUT, "--budget-error", 10)
    assert list(temporary.iterdir()) == []
    assert {file.name for file in here.iterdir()} == {"tmp", "recipe.json"}
