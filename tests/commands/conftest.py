"""Running commands in this process, as if from a shell."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from flowturbo_trt.commands.group import cli

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Give a function that runs `flowturbo_trt WORDS…` and expects an exit status."""

    def invoke(*words: object, status: int = 0) -> Result:
        result = CliRunner().invoke(cli, [str(word) for word in words], prog_name="flowturbo_trt")
        assert result.exit_code == status, result.output
        return result

    return invoke


@pytest.fixture
def fails(run: Run) -> Callable[..., str]:
    """Give a function that expects exit status 1 and one line on stderr, which it returns."""

    def invoke(*words: object) -> str:
        result = run(*words, status=1)
        assert result.stdout == ""
        *progress, line = result.stderr.splitlines()
        assert all(text.startswith("[") for text in progress)
        assert line.startswith("error: ")
        assert "Traceback" not in result.stderr
        return line.removeprefix("error: ")

    return invoke


@pytest.fixture
def document(run: Run) -> Callable[..., dict[str, Any]]:
    """Give a function that runs a command with --json and returns the one document on stdout."""

    def invoke(*words: object) -> dict[str, Any]:
        result = run(*words, "--json")
        assert result.stdout.count("\n") == 1
        content: dict[str, Any] = json.loads(result.stdout)
        assert content["version"] == 1
        # A command within a group has two words.
        assert " ".join(map(str, words)).startswith(content["command"])
        return content

    return invoke


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def golden_inputs(golden: dict[str, Any], here: Path) -> list[str]:
    """The options that name the golden noise and labels, written to files."""
    np.save(here / "z.npy", golden["z"])
    np.save(here / "y.npy", golden["y"])
    return ["--noise", "z.npy", "--labels", "y.npy", "--guidance", "1.5"]
