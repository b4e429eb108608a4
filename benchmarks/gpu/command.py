"""What the two commands have in common: which targets, on which GPU, and how they end without one."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from flowturbo_trt.benchmarks.gpu.targets import Target, describe_gpu, targets_for
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.sampling.errors import FlowTurboError

DEVICE_HELP = "cuda or cuda:N; with cpu it is a dry run, which tries out this script and no GPU."


def choose_targets(
    device: str, backends: tuple[str, ...], out: Path | None
) -> tuple[dict[str, Target], dict[str, Any] | None]:
    """Return the targets that were asked for by name, and the GPU, which a dry run has none of.

    Raises UsageError; ends the process with 3 where there is no GPU.
    """
    if device == "cpu" and out is None:
        raise click.UsageError("a dry run with --device cpu has no place among the results: give --out")
    known = targets_for(device)
    if wrong := [name for name in backends if name not in known]:
        raise click.UsageError(f"{wrong[0]} does not run on {device}; known are {', '.join(known)}")
    try:
        gpu = describe_gpu(device)
    except BackendError as error:
        click.echo(f"no GPU backend ran: {error}")
        sys.exit(3)
    return {name: known[name] for name in backends or known}, gpu


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the process with 1 and a line for what is no finding: a library of the build that is missing."""
    try:
        yield
    except (FlowTurboError, ModuleNotFoundError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
