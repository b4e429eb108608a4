"""`triton`: what it writes and says, what its checks say, and how it refuses."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import Result

from flowturbo_trt.bundle.gpus import GpuError
from flowturbo_trt.serving.triton.config import read_config, read_settings
from flowturbo_trt.serving.triton.options import ModelOptions, ServerOptions
from flowturbo_trt.tests.bundles import edit_manifest

Run = Callable[..., Result]
Document = Callable[..., dict[str, Any]]


def test_words(run: Run, tiny_bundle: Path, here: Path) -> None:
    result = run("triton", tiny_bundle, "models", "--name", "tiny", "--threads", 1)
    assert result.stdout.splitlines() == [
        f"{here}/models/tiny: version 1 is new",
        "H1P1R1 on onnxruntime (cpu)",
        "",
        "start",
        f"  tritonserver --model-repository={here}/models --disable-auto-complete-config "
        "--strict-readiness=true --exit-on-error=true --model-control-mode=explicit --load-model=tiny",
        "load again, where a server runs",
        "  curl -X POST localhost:8000/v2/repository/models/tiny/load",
    ]
    assert re.fullmatch(r"(\[\d/\d\] (checking|copying) the bundle\n)+", result.stderr)
    again = run("triton", tiny_bundle, "models", "--name", "tiny", "--threads", 1)
    assert "version 1 holds this bundle, with these options; nothing is new" in again.stdout
    other = run("triton", tiny_bundle, "models", "--name", "tiny", "--threads", 1, "--instances", 2)
    assert "tiny: version 1 holds this bundle; its config is new\n" in other.stdout
    assert "others than before: instance_group\n" in other.stdout


def test_all_options(document: Document, tiny_bundle: Path, here: Path) -> None:
    told = document(
        *("triton", tiny_bundle, "models", "--name", "tiny", "--schedule", "H2", "--schedule", "H1P1R1"),
        *("--backend", "onnxruntime", "--device", "cuda", "--provider", "cuda", "--gpu", 1, "--gpu", 0),
        *("--instances", 2, "--threads", 3, "--max-queue-delay-us", 50, "--queue-size", 9),
        *("--timeout-ms", 700, "--cancellation", "--previews", "--response-cache"),
    )
    assert told["models"] == ["tiny", "tiny_previews"]
    assert (told["version"], told["change"]) == (1, "version")
    config = read_config(here / "models" / "tiny" / "config.pbtxt")
    settings = read_settings(config)
    assert settings is not None
    assert settings.schedules == ("H2", "H1P1R1")
    assert (settings.backend, settings.device, settings.provider) == ("onnxruntime", "cuda", "cuda")
    assert (settings.threads, settings.cancellation) == (3, True)
    assert settings.bundles == {"1": told["sha256"]}
    (group,) = config.instance_group
    assert (group.count, list(group.gpus)) == (2, [1, 0])
    policy = config.dynamic_batching.default_queue_policy
    assert config.dynamic_batching.max_queue_delay_microseconds == 50
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (9, 700_000)
    assert config.response_cache.enable
    assert "--cache-config=local" in told["start"]


def test_defaults_are_those_of_the_dataclasses(document: Document, tiny_bundle: Path, here: Path) -> None:
    told = document("triton", tiny_bundle, "models", "--name", "tiny")
    server = ServerOptions()
    assert told["server"] == {
        "instances": server.instances,
        "gpus": [],
        "max_queue_delay_us": server.max_queue_delay_us,
        "queue_size": server.queue_size,
        "timeout_ms": server.timeout_ms,
        "response_cache": False,
    }
    assert told["settings"]["threads"] == 0
    assert ModelOptions().cancellation is None
    assert told["settings"]["cancellation"] is True
    off = document("triton", tiny_bundle, "models", "--name", "tiny", "--no-cancellation")
    assert off["settings"]["cancellation"] is False


def test_going_back_is_told(run: Run, tiny_copy: Path, tiny_bundle: Path, here: Path) -> None:
    def drop(manifest: dict[str, Any]) -> None:
        manifest["engines"] = [e for e in manifest["engines"] if "refiner" not in e["network"]]

    edit_manifest(tiny_copy, drop)
    run("triton", tiny_copy, "models", "--name", "tiny", "--schedule", "H2")
    result = run("triton", tiny_bundle, "models", "--name", "tiny")
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("version 1 does not run"))
    assert "no guided refiner engine" in line
    assert line.endswith(f"to go back to it, write {here}/models/tiny/1/bundle as a new version")


def test_check(run: Run, document: Document, tiny_bundle: Path, here: Path) -> None:
    run("triton", tiny_bundle, "models", "--name", "tiny", "--threads", 1)
    result = run("triton", "--check", "models")
    *rows, empty, verdict = result.stdout.splitlines()
    assert [row[0] for row in rows] == ["✓"] * 3
    assert (empty, verdict) == ("", "✓ all 3 checks hold")
    told = document("triton", "--check", "models")
    assert told["passed"] is True
    assert {finding["status"] for finding in told["findings"]} == {"passed"}


def test_check_that_fails(run: Run, tiny_bundle: Path, here: Path) -> None:
    run("triton", tiny_bundle, "models", "--name", "tiny", "--threads", 1)
    (here / "models" / "tiny" / "1" / "model.py").write_text("")
    result = run("triton", "--check", "models", status=3)
    assert "✗  tiny  version 1" in result.stdout
    assert result.stdout.endswith("✗ 1 of 3 checks failed\n")


def test_check_of_what_runs_elsewhere(
    run: Run, tiny_bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise GpuError("nvidia-smi shows no GPU")

    monkeypatch.setattr("flowturbo_trt.serving.triton.trial.gpus", none)
    run("triton", tiny_bundle, "models", "--name", "tiny", "--device", "cuda")
    result = run("triton", "--check", "models")
    assert "–  tiny  running version 1  nvidia-smi shows no GPU" in result.stdout
    assert result.stdout.endswith("✓ all 2 checks hold; 1 not run here\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "expected BUNDLE and REPO, or --check REPO"),
        (["bundle"], "expected BUNDLE and REPO, or --check REPO"),
        (["--check", "models", "bundle"], "--check only reads, and takes no BUNDLE"),
        (["--check", "models", "--instances", "2"], "--check only reads, and takes no --instances"),
        (["--check", "models", "--previews"], "--check only reads, and takes no --previews"),
        (["bundle", "models", "--instances", "0"], "0 is not in the range x>=1"),
        (["bundle", "models", "--device", "cuda:1"], "'cuda:1' is not one of 'cpu', 'cuda'"),
        (["bundle", "models", "--gpu", "x"], "'x' is not a valid integer"),
    ],
)
def test_wrong_usage(run: Run, here: Path, words: list[str], told: str) -> None:
    result = run("triton", *words, status=2)
    assert told in result.stderr
    assert result.stdout == ""
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere", "models"], "nowhere: no bundle here"),
        (["BUNDLE", "models", "--schedule", "R1"], "R1: starts with R"),
        (["BUNDLE", "models", "--backend", "tensorrt"], "no guided predictor engine for tensorrt"),
        (["BUNDLE", "models", "--gpu", "0"], "gpus [0]: the model runs on the CPU; leave them out"),
        (["BUNDLE", "models", "--name", "a b"], "'a b' cannot be the name of a model"),
        (["BUNDLE", "BUNDLE"], "is a bundle; give the folder of the model repository"),
        (["--check", "models"], "models: is no folder; give the folder of the model repository"),
        (["--check", "."], ".: holds no model of flowturbo_trt; write one with"),
        (["BUNDLE", "models", "--queue-size", "5000000000"], "queue_size is 5000000000, expected 0 to 4294"),
    ],
)
def test_mistakes(
    fails: Callable[..., str], tiny_bundle: Path, here: Path, words: list[str], told: str
) -> None:
    assert told in fails("triton", *(tiny_bundle if word == "BUNDLE" else word for word in words))
    assert not list(here.iterdir())


def test_missing_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.import_module

    def import_module(module: str) -> ModuleType:
        if module == "flowturbo_trt.commands.triton":
            raise ModuleNotFoundError("No module named 'tritonclient'", name="tritonclient")
        return found(module)

    monkeypatch.setattr("importlib.import_module", import_module)
    line = run("triton", "--help", status=1).stderr
    assert "`triton` needs tritonclient" in line
    assert "pip install 'flowturbo_trt[serving]'" in line
