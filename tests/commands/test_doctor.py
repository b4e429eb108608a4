"""`doctor`: on this machine end to end, and on made-up ones."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from flowturbo_trt.commands import doctor
from flowturbo_trt.evaluation.doctor.facts import Facts
from flowturbo_trt.evaluation.doctor.probes import Answer
from flowturbo_trt.tests.evaluation.doctor.machines import BARE, FACTS, absent, machine, onnxruntime

Run = Callable[..., Result]
ROOT = Path(__file__).parents[2]
PROBE = """
import json, sys
from flowturbo_trt.commands.group import cli

try:
    cli(["doctor", sys.argv[1]], prog_name="flowturbo_trt")
except SystemExit as stop:
    assert not stop.code, stop.code
print(json.dumps([name for name in sys.argv[2:] if name in sys.modules]), file=sys.stderr)
"""
BACKENDS = ("onnxruntime", "tensorrt", "tensorrt_rtx", "openvino")
HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "diffusers", *BACKENDS)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Facts], None]:
    """Give a function that puts the command on a made-up machine."""
    return lambda facts: monkeypatch.setattr(doctor, "gather", lambda: facts)


def test_this_machine_runs_a_bundle(tiny_bundle: Path) -> None:
    """The whole command, whose own process loads nothing that it judges."""
    process = [sys.executable, "-c", PROBE, str(tiny_bundle), *HEAVY]
    done = subprocess.run(process, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == []
    assert "can build for: onnxruntime" in done.stdout
    assert "can run: onnxruntime on cpu" in done.stdout
    assert f"bundle {tiny_bundle}: possible here" in done.stdout


def test_this_machine_as_data(document: Callable[..., dict[str, Any]]) -> None:
    content = document("doctor")
    assert content["possible"]
    assert "onnxruntime" in content["builds"]
    assert content["runs"]["onnxruntime"][0] == "cpu"
    assert content["asked"] == {}
    for finding in content["findings"]:
        assert finding.keys() == {"group", "name", "status", "detail", "remedy"}
        assert finding["status"] in doctor.SIGNS
    assert list(dict.fromkeys(finding["group"] for finding in content["findings"])) == [
        "machine",
        "build",
        "run",
    ]


def test_library_that_kills_its_process(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many do: what remains is told."""
    for module in HEAVY:
        (tmp_path / f"{module}.py").write_text("import os; os.kill(os.getpid(), 11)")
    monkeypatch.syspath_prepend(tmp_path)
    result = run("doctor", status=3)
    assert result.stdout.count("killed by SIGSEGV") >= len(HEAVY)
    assert "can build for: nothing\ncan run: nothing" in result.stdout


def test_table(run: Run, on: Callable[[Facts], None]) -> None:
    on(replace(FACTS, onnxruntimes=("onnxruntime", "onnxruntime-gpu")))
    lines = run("doctor").stdout.splitlines()
    (index,) = (i for i, line in enumerate(lines) if line.startswith("  ✗"))
    assert "onnxruntime" in lines[index]
    assert lines[index + 1].strip().startswith("→ pip uninstall -y onnxruntime onnxruntime-gpu")
    assert any(line.startswith("  – GPU ") for line in lines)
    assert lines[0] == "machine"


def test_nothing_runs(run: Run, on: Callable[[Facts], None]) -> None:
    on(replace(FACTS, onnxruntime=onnxruntime()))
    result = run("doctor", status=3)
    assert "can run: nothing" in result.stdout
    assert json.loads(run("doctor", "--json", status=3).stdout)["possible"] is False


def test_bundle_that_is_none(run: Run, on: Callable[[Facts], None], tmp_path: Path) -> None:
    on(FACTS)
    result = run("doctor", tmp_path, status=3)
    assert "no bundle here" in result.stdout
    assert f"bundle {tmp_path}: not possible here" in result.stdout


def test_model(run: Run, on: Callable[[Facts], None]) -> None:
    on(FACTS)
    assert "model SiT-B/4: possible here" in run("doctor", "--model", "SiT-B/4", "--batch", 8).stdout
    on(machine(memory_available=2**30))
    assert "model SiT-XL/2: not possible here" in run("doctor", "--model", "SiT-XL/2", status=3).stdout
    on(replace(FACTS, libraries={**FACTS.libraries, **BARE}, packages={}))
    assert "no backend can be built for" in run("doctor", "--model", "SiT-S/2", status=3).stdout


def test_without_numpy(run: Run, on: Callable[[Facts], None], tiny_bundle: Path) -> None:
    """Reading a bundle would end like the child that has tried."""
    broken = Answer(error="its process was killed by SIGSEGV")
    on(replace(FACTS, registries=broken, onnxruntime=absent("numpy"), compilers={}, backends={}))
    result = run("doctor", tiny_bundle, "--model", "SiT-S/2", status=3)
    assert result.stdout.count("not looked at") == 2


@pytest.mark.parametrize(
    "words", [["--model", "SiT-M/2"], ["--batch", "1"], ["--model", "SiT-S/2", "--batch", "0"]]
)
def test_wrong_usage(run: Run, words: list[str]) -> None:
    assert "Error: " in run("doctor", *words, status=2).stderr
