"""`flowturbo_trt triton`."""

from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click
import onnxruntime
from click.core import ParameterSource

from flowturbo_trt.commands.common import CHECK_FAILED, Console, make_command
from flowturbo_trt.commands.forecast import columns
from flowturbo_trt.commands.running import backend_option, provider_option
from flowturbo_trt.serving.triton.checks import Finding, Status, check_repository
from flowturbo_trt.serving.triton.options import DEVICES, ModelOptions, ServerOptions
from flowturbo_trt.serving.triton.repository import Written, write_repository

DEFAULTS = ServerOptions()
SIGNS: dict[Status, str] = {"passed": "✓", "failed": "✗", "not run": "–"}


@make_command(name="triton", short_help="Write a model repository for Triton around a bundle, or check one.")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.argument("repository", metavar="[REPO]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--check",
    metavar="REPO",
    type=click.Path(path_type=Path),
    help="Check this repository instead: every file, every config, and images at every batch size.",
)
@click.option("--name", help="Of the model. Default: the name of BUNDLE's folder.")
@click.option(
    "--schedule",
    "schedules",
    multiple=True,
    help="What the model runs; repeatable: requests may then ask for one, by default the first. Default: "
    "the bundle's.",
)
@backend_option
@click.option(
    "--device", type=click.Choice(DEVICES), help="Default: what the backend is made for; see also --gpu."
)
@provider_option
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    type=click.IntRange(min=0),
    help="Number of a GPU to run on; repeatable. Default: all there are.",
)
@click.option(
    "--instances",
    type=click.IntRange(min=1),
    default=DEFAULTS.instances,
    show_default=True,
    help="Run so many side by side, on each GPU or on the CPU: each holds the engines once more.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    help="CPU threads of an instance; 0: all cores. Default: its share of this machine's cores.",
)
@click.option(
    "--max-queue-delay-us",
    type=click.IntRange(min=0),
    default=DEFAULTS.max_queue_delay_us,
    show_default=True,
    help="How long a request may wait for company, in microseconds. At 0 batches form of what comes in while "
    "the model is busy.",
)
@click.option(
    "--queue-size",
    type=click.IntRange(min=0),
    default=DEFAULTS.queue_size,
    show_default=True,
    help="Requests that may wait before more are rejected; 0: any number.",
)
@click.option(
    "--timeout-ms",
    type=click.IntRange(min=0),
    default=DEFAULTS.timeout_ms,
    show_default=True,
    help="How long a request may wait before it is rejected, unless it says so itself; 0: for ever.",
)
@click.option(
    "--cancellation/--no-cancellation",
    default=None,
    help="Give up requests whose callers did. Default: on the CPU only; on a GPU this costs the graph of the "
    "whole trajectory, which cannot be left halfway.",
)
@click.option("--previews", is_flag=True, help="Add NAME_previews, which streams a preview after every step.")
@click.option(
    "--response-cache",
    is_flag=True,
    help="Let the server answer from memory what it was asked before: equal inputs make equal images.",
)
def command(
    console: Console,
    bundle: Path | None,
    repository: Path | None,
    check: Path | None,
    name: str | None,
    previews: bool,
    **given: Any,
) -> None:
    """Write BUNDLE into REPO, a model repository for Triton, or check one with --check.

    The first call for a NAME makes version 1; one with another bundle makes the next version beside it,
    which a server serves when it is told to load the model again. Back to the version before: remove the
    newest one's folder, and load again.

    \b
    flowturbo_trt triton bundle models --name sit
    flowturbo_trt triton --check models
    """
    if not console.shows_tracebacks:
        # What ONNX Runtime would print is raised as an error as well. The process is ours to silence.
        onnxruntime.set_default_logger_severity(4)
    if check is not None:
        refuse_others(click.get_current_context())
        with console.progress() as progress:
            findings = check_repository(check, progress)
        tell_findings(console, check, findings)
        return
    if bundle is None or repository is None:
        raise click.UsageError("expected BUNDLE and REPO, or --check REPO")
    model = ModelOptions(**{field.name: given[field.name] for field in fields(ModelOptions)})
    server = ServerOptions(**{field.name: given[field.name] for field in fields(ServerOptions)})
    with console.progress() as progress:
        written = write_repository(
            bundle, repository, name, model, server, previews=previews, progress=progress
        )
    tell_written(console, bundle, written)


def refuse_others(context: click.Context) -> None:
    """Refuse what would be about writing beside --check."""
    for parameter in context.command.params:
        name = str(parameter.name)
        if name in ("check", "as_json", "verbose", "quiet"):
            continue
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            word = parameter.opts[0] if isinstance(parameter, click.Option) else name.upper()
            raise click.UsageError(f"--check only reads, and takes no {word}")


def tell_written(console: Console, bundle: Path, written: Written) -> None:
    """Print what was written, and how a server is started on it."""
    document = {
        "command": "triton",
        "bundle": str(bundle),
        "repository": str(written.repository),
        "models": written.models,
        "version": written.version,
        "sha256": written.sha256,
        "change": written.change,
        "reconfigured": written.reconfigured,
        "unfit": written.unfit,
        "settings": asdict(written.settings),
        "server": asdict(written.server),
        "start": written.start_command,
    }
    console.result(document, "\n".join(written_lines(written)))


def written_lines(written: Written) -> list[str]:
    """Lay out for people what was written."""
    folder, settings = written.repository / written.name, written.settings
    happened = {
        "version": f"version {written.version} is new",
        "config": f"version {written.version} holds this bundle; its config is new",
        "nothing": f"version {written.version} holds this bundle, with these options; nothing is new",
    }[written.change]
    lines = [f"{folder}: {happened}"]
    lines.append(f"{', '.join(settings.schedules)} on {settings.backend} ({settings.device})")
    lines += [f"{written.repository / streaming}: streams previews" for streaming in written.models[1:]]
    if written.reconfigured:
        lines.append(f"others than before: {', '.join(written.reconfigured)}")
    for version, reason in written.unfit.items():
        lines.append(
            f"version {version} does not run with these options ({reason}): to go back to it, write "
            f"{folder / str(version)}/bundle as a new version"
        )
    lines += ["", "start", f"  {written.start_command}"]
    lines += ["load again, where a server runs", *(f"  {command}" for command in written.load_commands)]
    return lines


def tell_findings(console: Console, repository: Path, findings: tuple[Finding, ...]) -> None:
    """Print what was found; exits with CHECK_FAILED where something is wrong."""
    counts = Counter(finding.status for finding in findings)
    left_out = f"; {counts['not run']} not run here" if counts["not run"] else ""
    holds = not counts["failed"]
    verdict = f"✓ all {counts['passed']} checks hold{left_out}"
    if not holds:
        verdict = f"✗ {counts['failed']} of {len(findings)} checks failed{left_out}"
    rows = [(SIGNS[finding.status], finding.model, finding.what, finding.detail) for finding in findings]
    document = {
        "command": "triton",
        "repository": str(repository),
        "passed": holds,
        "findings": [asdict(finding) for finding in findings],
    }
    console.result(document, "\n".join([*columns(rows), "", verdict]))
    if not holds:
        raise click.exceptions.Exit(CHECK_FAILED)
