"""The command group: help that starts fast, exit statuses, and what a base install lacks."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import Result

import flowturbo_trt
from flowturbo_trt.commands import calibrate
from flowturbo_trt.commands.group import COMMANDS

Run = Callable[..., Result]
# Every command, with a group's own in its place.
SUMMARIES = {name: summary for name, summary in COMMANDS.items() if name != "calibrate"} | {
    f"calibrate {name}": summary for name, summary in calibrate.COMMANDS.items()
}
ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "onnxruntime", "numpy", "onnx", "diffusers", "PIL")
PROBE = """
import json, sys
from flowturbo_trt.commands.group import cli

try:
    cli(sys.argv[1].split(), prog_name="flowturbo_trt")
except SystemExit as stop:
    assert stop.code == 0
print(json.dumps([name for name in sys.argv[2:] if name in sys.modules]), file=sys.stderr)
"""


@pytest.mark.parametrize("words", ["--help", "-h", "--version"])
def test_help_starts_no_library(words: str) -> None:
    process = [sys.executable, "-c", PROBE, words, *HEAVY]
    done = subprocess.run(process, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr) == []


def test_sampling_starts_no_torch() -> None:
    process = [
        sys.executable,
        "-c",
        PROBE,
        "sample --help",
        "torch",
        "onnx",
        "diffusers",
        "safetensors",
        "PIL",
    ]
    done = subprocess.run(process, cwd=ROOT, capture_output=True, text=True, check=False)
    assert json.loads(done.stderr) == []


def test_group_help(run: Run) -> None:
    text = run("--help").stdout
    for name, summary in COMMANDS.items():
        assert name in text
        assert summary in text


def test_calibrate_help(run: Run) -> None:
    text = run("calibrate", "--help").stdout
    for name, summary in calibrate.COMMANDS.items():
        assert name in text
        assert summary in text


@pytest.mark.parametrize("name", SUMMARIES)
def test_command_help(run: Run, name: str) -> None:
    """With an example, and the options that all commands have."""
    text = run(*name.split(), "--help").stdout
    assert f"Usage: flowturbo_trt {name}" in text
    for option in ("--json", "--verbose", "--quiet", "--config-file", "--help"):
        assert option in text


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_option_is_explained(name: str) -> None:
    command = importlib.import_module(f"flowturbo_trt.commands.{name.replace(' ', '_')}").command
    assert command.short_help == SUMMARIES[name]
    for parameter in command.params:
        assert parameter.param_type_name == "argument" or parameter.help, parameter.name


def test_version(run: Run) -> None:
    assert flowturbo_trt.__version__ in run("--version").stdout


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["sample"],
        ["sample", "bundle"],
        ["sample", "bundle", "--labels", "x", "--out", "a.png"],
        ["sample", "bundle", "--labels", "1"],
        ["sample", "bundle", "--labels", "1", "--out", "a.png", "--columns", "0"],
        ["sample", "bundle", "--labels", "1", "--out", "a.png", "--threads", "-1"],
        ["sample", "bundle", "--labels", "1", "--out", "a.png", "--guidance", "much"],
        ["inspect"],
        ["inspect", "a", "b"],
        ["build", "out"],
        ["build", "out", "--predictor", "p.pt"],
        ["build", "out", "--predictor", "p.pt", "--decoder", "none", "--batch", "many"],
        ["train", "--predictor", "p.pt"],
        ["train", "--unknown"],
        ["calibrate", "everything"],
        ["calibrate", "solver"],
        ["calibrate", "solver", "bundle"],
        ["calibrate", "solver", "bundle", "--save", "--evaluations", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage(run: Run, words: list[str]) -> None:
    result = run(*words, status=2)
    assert result.stdout == ""
    assert "Error: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("name", "extra"), [("build", "export"), ("train", "train"), ("calibrate solver", "calibrate")]
)
def test_missing_extra(run: Run, monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    found = importlib.import_module

    def import_module(module: str, *arguments: Any) -> ModuleType:
        if module == f"flowturbo_trt.commands.{name.replace(' ', '_')}":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return found(module, *arguments)

    monkeypatch.setattr("importlib.import_module", import_module)
    line = run(*name.split(), "--help", status=1).stderr
    assert f"`{name}` needs torch" in line
    assert f"pip install 'flowturbo_trt[{extra}]'" in line
