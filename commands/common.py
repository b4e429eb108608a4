"""What all commands share: errors on one line, JSON on request, progress on a terminal, config files."""

import contextlib
import functools
import json
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import click

from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.program import Program

JSON_VERSION = 1
# Exit status when a check (verify, a gate) did not hold.
CHECK_FAILED = 3


class Console:
    """Where a command's words go: results to stdout, everything else to stderr."""

    def __init__(self, *, as_json: bool, verbosity: int) -> None:
        self._as_json = as_json
        self._verbosity = verbosity

    @property
    def shows_tracebacks(self) -> bool:
        return self._verbosity > 0

    def info(self, text: str) -> None:
        """Say something about the work, unless quiet."""
        if self._verbosity >= 0:
            # A bar on a terminal has the line: it is drawn anew below.
            click.echo(f"\r\033[K{text}" if sys.stderr.isatty() else text, err=True)

    def result(self, document: dict[str, Any], text: str) -> None:
        """Print the result: the document with --json, else the text."""
        if self._as_json:
            click.echo(json.dumps({"version": JSON_VERSION, **document}))
        elif text:
            click.echo(text)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        """Give a function (what, done, total): a bar on a terminal, lines now and then elsewhere."""
        stream = sys.stderr
        if self._verbosity < 0:
            yield lambda what, done, total: None
        elif stream.isatty():
            with _Bar(stream) as bar:
                yield bar
        else:
            yield _Lines(self.info)


class _Bar:
    """click's progress bar, made when the total is known and again when it changes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Any = None
        self._total = -1

    def __enter__(self) -> "_Bar":
        return self

    def __call__(self, what: str, done: int, total: int) -> None:
        if total != self._total:
            self.__exit__()
            self._bar = click.progressbar(
                length=total, file=self._stream, item_show_func=_text, show_pos=True, width=24
            )
            self._bar.__enter__()
            self._total = total
        self._bar.update(done - self._bar.pos, what)
        # Without a step forward click leaves the bar as it was, and what is being done unsaid.
        self._bar.render_progress()

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)


def _text(item: str | None) -> str:
    return item or ""


class _Lines:
    """For logs: the first line, the last, and at most one every SECONDS between, with the time left."""

    SECONDS = 2.0

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._next = 0.0
        self._total = -1
        self._started = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if total != self._total:
            # Another count than before, of which nothing is known yet.
            self._total, self._started = total, now
        if now >= self._next or done == total:
            self._say(f"[{done}/{total}{self._left(done, now)}] {what}")
            self._next = now + self.SECONDS

    def _left(self, done: int, now: float) -> str:
        """Estimate the time left, once enough has passed to tell."""
        passed = now - self._started
        if done == 0 or done == self._total or passed < self.SECONDS:
            return ""
        minutes, seconds = divmod(round(passed * (self._total - done) / done), 60)
        return f", {minutes}:{seconds:02} left"


def make_command(**settings: Any) -> Callable[[Callable[..., None]], click.Command]:
    """Make a click command of a function that takes a Console first; adds the common options."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(as_json: bool, verbose: int, quiet: bool, **arguments: Any) -> None:
            console = Console(as_json=as_json, verbosity=-1 if quiet else verbose)
            with reported(console):
                function(console, **arguments)

        decorators = [
            click.command(**settings),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout."),
            click.option("-v", "--verbose", count=True, help="Say more; show tracebacks."),
            click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and results."),
            click.option(
                "--config-file",
                type=click.Path(path_type=Path),
                is_eager=True,
                expose_value=False,
                callback=_read_config_file,
                help="TOML file with any of these options, by long name.",
            ),
        ]
        result: Any = run
        for decorator in reversed(decorators):
            result = decorator(result)
        made: click.Command = result
        return made

    return decorate


@contextlib.contextmanager
def reported(console: Console) -> Iterator[None]:
    """Turn errors into one line on stderr and an exit status of 1; -v shows where they came from."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit):
        raise
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if console.shows_tracebacks:
            raise
        message = " ".join(str(error).split())
        if not isinstance(error, FlowTurboError | OSError):
            message = f"internal error, {type(error).__name__}: {message} (-v shows where)"
        click.echo(f"error: {message}", err=True)
        sys.exit(1)


def evaluation_counts(program: Program) -> dict[str, int]:
    """Count evaluations by network; by network and variant where a network is evaluated in several."""
    counts = program.evaluations()
    networks = [network for network, _ in counts]
    return {
        f"{network} {variant}" if networks.count(network) > 1 else network: count
        for (network, variant), count in counts.items()
    }


def _read_config_file(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Take options' defaults from a TOML file; what the command line says wins."""
    if path is None:
        return
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{path}: {error}", ctx, parameter) from error
    options = {
        option.removeprefix("--"): p
        for p in ctx.command.params
        if isinstance(p, click.Option) and p is not parameter
        for option in p.opts
        if option.startswith("--")
    }
    if unknown := sorted(set(content) - set(options)):
        known = ", ".join(sorted(options))
        raise click.BadParameter(f"{path}: unknown option {unknown[0]!r}; known are {known}", ctx, parameter)
    ctx.default_map = {
        str(options[key].name): [value] if options[key].multiple and not isinstance(value, list) else value
        for key, value in content.items()
    }
