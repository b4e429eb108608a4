"""`flowturbo_trt diagnose`: files, text, JSON, and mistakes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from flowturbo_trt.tests.bundles import changed_copy

FEW = ("--num", 3, "--steps", 6, "--threads", 1)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def unrefined_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle without a refiner, whose default schedule has no R steps."""

    def drop(data: dict[str, Any]) -> None:
        data["engines"] = [e for e in data["engines"] if not e["network"].startswith("refiner")]
        data["default_schedule"] = "H2"

    return changed_copy(tiny_bundle, tmp_path, drop)


def test_with_a_refiner(document: Callable[..., dict[str, Any]], golden_bundle: Path, here: Path) -> None:
    words = ("diagnose", golden_bundle, *FEW, "--schedule", "H1P1R2", "--out", "made/diagnosis")
    found = document(*words)
    assert (found["schedule"], found["guidance"], found["images"]) == ("H1P1R2", 1.5, 3)
    assert (found["refiner"], found["truth"], found["backend"]) == (True, "H6", "onnxruntime")
    assert len(found["in_schedule"]) == 4
    assert found["ages_unguided"] is not None
    assert found["verdict"][0].startswith("3 images are too few to say whether the refiner helps H1P1R2")
    outputs = found.pop("outputs")
    assert outputs == [f"made/diagnosis/diagnose.{suffix}" for suffix in ("json", "png", "svg")]
    text = Path(outputs[0]).read_text(encoding="utf-8")
    assert json.loads(text) == found
    assert all(Path(file).stat().st_size > 10_000 for file in outputs)
    assert document(*words)["endpoints"] == found["endpoints"]
    assert Path(outputs[0]).read_text(encoding="utf-8") == text


def test_before_training(run: Callable[..., Result], unrefined_bundle: Path, here: Path) -> None:
    result = run("diagnose", unrefined_bundle, *FEW, "--steps", 12, "--guidance", 1, "--out", "d", "-q")
    assert result.stderr == ""
    text = result.stdout
    assert "H1P5R3 at guidance 1, medians of 3 images" in text
    assert "3 images are too few to say whether a refiner can help H1P5R3" in text
    assert "what it has to beat" in text
    assert "worth" not in text
    assert {file.name for file in (here / "d").iterdir()} == {f"diagnose.{s}" for s in ("json", "png", "svg")}
    found = json.loads((here / "d" / "diagnose.json").read_text(encoding="utf-8"))
    assert found["refiner"] is False
    assert found["ages_unguided"] is None
    assert found["version"] == 1


def test_what_is_said(run: Callable[..., Result], tiny_bundle: Path, here: Path) -> None:
    """Tables of the very figures of the document, and the verdict."""
    text = run("diagnose", tiny_bundle, *FEW, "--labels", "2,0", "--out", "d").stdout
    found = json.loads((here / "d" / "diagnose.json").read_text(encoding="utf-8"))
    for end in found["endpoints"]:
        words = [end["schedule"], *end["name"].split(), f"{end['error']['median']:.4f}"]
        assert words in [line.split() for line in text.splitlines()]
    for call in found["in_schedule"]:
        step, errors = call["step"] + 1, (call["reuse"]["median"], call["refined"]["median"])
        words = [str(step), f"{call['t']:.3f}", f"{call['age']:.3f}", *(f"{error:.4f}" for error in errors)]
        assert [*words, f"{call['worth']:.2f}"] in [line.split() for line in text.splitlines()]
    for sentence in found["verdict"]:
        assert sentence in text
    assert "d/diagnose.png" in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--schedule", "H1Q2"], "unknown step 'Q'"),
        (["--schedule", "H1P1R1:guided=0..0.5"], "leave :guided= out"),
        (["--steps", "1"], "cannot be coarser than H1P1R1"),
        (["--labels", "7"], "label 7 is out of range"),
        (["--seed", "-1"], "seed -1 is not an integer"),
        (["--guidance", "nan"], "guidance is nan"),
        (["--backend", "openvino"], "no guided predictor engine for openvino"),
        (["--backend", "torch"], "backend 'torch' is not known"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
    ids=" ".join,
)
def test_mistakes_leave_nothing_behind(
    fails: Callable[..., str], tiny_bundle: Path, here: Path, words: list[str], expected: str
) -> None:
    assert expected in fails("diagnose", tiny_bundle, *FEW, *words, "--out", "d")
    assert not (here / "d").exists()


def test_a_place_that_is_no_folder(fails: Callable[..., str], tiny_bundle: Path, here: Path) -> None:
    (here / "file").write_text("mine")
    for place in ("file", "file/below"):
        assert f"{place}: cannot be a folder" in fails("diagnose", tiny_bundle, *FEW, "--out", place)
    assert (here / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written(
    fails: Callable[..., str], tiny_bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    assert "d: cannot be written; give a folder" in fails("diagnose", tiny_bundle, *FEW, "--out", "d")


def test_a_bundle_that_lacks_an_engine(fails: Callable[..., str], tiny_bundle: Path, here: Path) -> None:
    def drop(data: dict[str, Any]) -> None:
        data["engines"] = [e for e in data["engines"] if e["network"] != "predictor"]

    bundle = changed_copy(tiny_bundle, here, drop)
    assert "no guided predictor engine for onnxruntime" in fails("diagnose", bundle, *FEW, "--out", "d")
    assert "no bundle here" in fails("diagnose", here / "none", *FEW, "--out", "d")


@pytest.mark.parametrize(
    "words", [["--num", "0"], ["--labels", "many"], ["--steps", "0"], ["--threads", "-1"], []], ids=" ".join
)
def test_wrong_usage(run: Callable[..., Result], here: Path, words: list[str]) -> None:
    out = ["--out", "d"] if words else []
    assert "Error: " in run("diagnose", "bundle", *out, *words, status=2).stderr


def test_options_from_a_file(run: Callable[..., Result], tiny_bundle: Path, here: Path) -> None:
    (here / "options.toml").write_text('labels = [2, 1]\nnum = 2\nsteps = 4\nout = "d"\n')
    run("diagnose", tiny_bundle, "--config-file", "options.toml", "--schedule", "H2")
    found = json.loads((here / "d" / "diagnose.json").read_text(encoding="utf-8"))
    assert (found["images"], found["truth"], found["schedule"]) == (2, "H4", "H2")
    assert found["in_schedule"] == []


def test_no_torch_is_needed() -> None:
    probe = (
        "import sys; import flowturbo_trt.commands.diagnose; "
        "print([name for name in ('torch', 'onnx', 'diffusers', 'torchmetrics') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_matplotlib_the_extra_is_named(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("matplotlib", "flowturbo_trt.commands.diagnose"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "flowturbo_trt.evaluation.velocity.figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = run("diagnose", "--help", status=1).stderr
    assert "`diagnose` needs matplotlib" in line
    assert "pip install 'flowturbo_trt[evaluate]'" in line
