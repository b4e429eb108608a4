"""What all commands share: errors, verbosity, progress, and configuration files."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from flowturbo_trt.commands.common import Console, make_command
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.errors import FlowTurboError

Run = Callable[..., Result]


def command_that(act: Callable[[Console], None]) -> click.Command:
    """Make a command of a function of its console."""

    @make_command(name="act")
    def command(console: Console) -> None:
        act(console)

    return command


def raising(error: BaseException) -> click.Command:
    def act(console: Console) -> None:
        raise error

    return command_that(act)


def speak(console: Console) -> None:
    console.info("news")
    with console.progress() as progress:
        progress("working", 0, 2)
        progress("worked", 2, 2)
    console.result({"command": "act", "answer": 42}, "the answer")


@pytest.mark.parametrize(
    ("words", "stdout", "stderr"),
    [
        ([], "the answer\n", "news\n[0/2] working\n[2/2] worked\n"),
        (["-v"], "the answer\n", "news\n[0/2] working\n[2/2] worked\n"),
        (["-q"], "the answer\n", ""),
        (
            ["--json"],
            '{"version": 1, "command": "act", "answer": 42}\n',
            "news\n[0/2] working\n[2/2] worked\n",
        ),
        (["--json", "-q"], '{"version": 1, "command": "act", "answer": 42}\n', ""),
    ],
)
def test_results_and_words(words: list[str], stdout: str, stderr: str) -> None:
    result = CliRunner().invoke(command_that(speak), words)
    assert (result.exit_code, result.stdout, result.stderr) == (0, stdout, stderr)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Console(as_json=False, verbosity=0).progress() as progress:
        progress("first", 0, 1)
        for done in range(5):
            progress("second", done, 4)
    assert "second" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()


def test_lines_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Logs are not flooded: the first, the last, and one every two seconds."""
    clock = iter(np.arange(0, 100, 0.3))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    with Console(as_json=False, verbosity=0).progress() as progress:
        for done in range(31):
            progress("step", done, 30)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[0/30] step"
    assert lines[-1] == "[30/30] step"
    assert 4 <= len(lines) <= 8


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FlowTurboError("the value, the remedy"), "error: the value, the remedy\n"),
        (FlowTurboError("over\n  two lines"), "error: over two lines\n"),
        (FileNotFoundError(2, "No such file", "x"), "error: [Errno 2] No such file: 'x'\n"),
        (KeyError("x"), "error: internal error, KeyError: 'x' (-v shows where)\n"),
    ],
)
def test_errors_are_one_line(error: Exception, expected: str) -> None:
    result = CliRunner().invoke(raising(error), ["--json"])
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", expected)


def test_verbose_shows_where() -> None:
    error = FlowTurboError("the value")
    result = CliRunner().invoke(raising(error), ["-v"])
    assert result.exit_code == 1
    assert result.exception is error


def test_interrupt() -> None:
    result = CliRunner().invoke(raising(KeyboardInterrupt()))
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_usage_error_within_a_command() -> None:
    result = CliRunner().invoke(raising(click.UsageError("wrong words")))
    assert result.exit_code == 2
    assert "Error: wrong words" in result.stderr


@pytest.fixture
def config(here: Path) -> Callable[[str], Path]:
    """Give a function that writes a configuration file."""

    def write(text: str) -> Path:
        (here / "options.toml").write_text(text, encoding="utf-8")
        return here / "options.toml"

    return write


CONFIG = """
labels = [0, 1, 2]
seeds = 40
guidance = 3.0
schedule = "E2"
output-latents = "x.npy"
"""


def sampled(run: Run, bundle: Path, *words: object) -> np.ndarray[Any, Any]:
    run("sample", bundle, *words)
    found: np.ndarray[Any, Any] = np.load("x.npy")
    return found


def test_config_file(run: Run, tiny_bundle: Path, config: Callable[[str], Path]) -> None:
    found = sampled(run, tiny_bundle, "--config-file", config(CONFIG))
    words = ["--labels", "0-2", "--seeds", "40", "--guidance", "3", "--schedule", "E2"]
    np.testing.assert_array_equal(found, sampled(run, tiny_bundle, *words, "--output-latents", "x.npy"))
    assert found.shape == (3, 2, 4, 4)


@pytest.mark.parametrize("first", [True, False])
def test_command_line_wins(run: Run, tiny_bundle: Path, config: Callable[[str], Path], first: bool) -> None:
    """Wherever it stands."""
    file, own = ["--config-file", str(config(CONFIG))], ["--labels", "2", "--seeds", "7"]
    found = sampled(run, tiny_bundle, *(file + own if first else own + file))
    pipeline = Pipeline.load(tiny_bundle)
    states: list[Any] = []
    pipeline([2], seeds=[7], guidance=3, schedule="E2", on_step=lambda step: states.append(step.state.copy()))
    np.testing.assert_array_equal(found, states[-1])


def test_config_file_can_hold_common_options(
    run: Run, tiny_bundle: Path, config: Callable[[str], Path]
) -> None:
    result = run("sample", tiny_bundle, "--config-file", config(CONFIG + "json = true\nquiet = true\n"))
    assert json.loads(result.stdout)["images"] == 3
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label = 3", "unknown option 'label'; known are"),
        ("output_latents = 'x'", "unknown option 'output_latents'"),
        ("[sample]\nlabels = 3", "unknown option 'sample'"),
        ("config-file = 'other.toml'", "unknown option 'config-file'"),
        ("labels = ", "options.toml"),
        ("labels = ['a']", "is not a list of integers"),
        ("labels = 1.5", "is not a list of integers"),
        ("guidance = 'much'", "--guidance"),
        ("columns = 0", "--columns"),
    ],
)
def test_config_file_that_is_refused(
    run: Run, tiny_bundle: Path, config: Callable[[str], Path], text: str, words: str
) -> None:
    given = ["--labels", "0"] if "labels" not in text else []
    result = run("sample", tiny_bundle, "--out", "x.npy", *given, "--config-file", config(text), status=2)
    assert result.stdout == ""
    assert words in re.sub(r"\s+", " ", result.stderr)


def test_config_file_that_is_not_there(run: Run, tiny_bundle: Path, here: Path) -> None:
    result = run("sample", tiny_bundle, "--labels", "0", "--config-file", "nowhere.toml", status=2)
    assert "nowhere.toml" in result.stderr
