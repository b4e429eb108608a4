"""The commands and code of the README and the serving guide are run as they stand, beside the examples."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from flowturbo_trt.benchmarks.tables import PAGES, with_tables
from flowturbo_trt.commands.group import cli

ROOT = Path(__file__).parents[1]
TEXTS = [page.read_text(encoding="utf-8") for page in PAGES]
BLOCK = re.compile(r"(<!-- not run[^\n]*-->\n)?```(sh|python)\n(.*?)```", re.DOTALL)
BLOCKS = [(bool(match[1]), match[2], match[3]) for match in BLOCK.finditer("\n".join(TEXTS))]


def commands(*, run: bool) -> list[list[str]]:
    """Return the words of every shell command, of those that are run here or of the others."""
    texts = [text for skipped, language, text in BLOCKS if language == "sh" and skipped is not run]
    lines = "\n".join(texts).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's relative paths work, without writing into the tree."""
    path = tmp_path_factory.mktemp("readme")
    (path / "examples").symlink_to(ROOT / "examples")
    (path / "out").mkdir()
    return path


def run(folder: Path, *words: str) -> None:
    """Run Python in the folder, with this tree's package."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_commands_and_code_work_in_order(folder: Path) -> None:
    for skipped, language, text in BLOCKS:
        if skipped:
            continue
        if language == "python":
            run(folder, "-c", text)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            if words and words[0] == "flowturbo_trt":
                run(folder, str(ROOT / "flowturbo_trt.py"), *words[1:])
    assert (folder / "out" / "digits.png").stat().st_size > 0
    assert (folder / "out" / "sevens.npy").stat().st_size > 0


def test_commands_that_are_not_run_have_known_options() -> None:
    shown = [words for words in commands(run=False) if words[0] == "flowturbo_trt"]
    assert shown
    for _, name, *arguments in shown:
        command = cli.get_command(click.Context(cli), name)
        if isinstance(command, click.Group):
            name, *arguments = arguments
            command = command.get_command(click.Context(command), name)
        assert command is not None
        command.make_context(name, arguments, resilient_parsing=False)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([\w-]+)", "\n".join(TEXTS))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_tables_are_those_of_the_results() -> None:
    """No figure is typed by hand: `make proof` writes the results and the tables."""
    assert [with_tables(text) for text in TEXTS] == TEXTS
