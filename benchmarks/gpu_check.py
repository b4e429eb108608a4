"""Check every backend that runs on this machine's GPU: `make gpu-check`, or this file as a module.

Runs from a checkout, without a network, with whatever is installed.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from flowturbo_trt.benchmarks.gpu.results import open_results, save_results
from flowturbo_trt.benchmarks.gpu.targets import DRY_TARGETS, TARGETS, Target, no_gpu, targets_for
from flowturbo_trt.benchmarks.tables import RESULTS, ROOT, update_readme
from flowturbo_trt.sampling.errors import FlowTurboError

NAME = "gpu_check.json"
Checking = Callable[[str, Target, Any, Callable[[str], None]], dict[str, Any]]


@click.command()
@click.option("--backend", "backends", multiple=True, type=click.Choice([*TARGETS, *DRY_TARGETS]))
@click.option(
    "--device",
    default="cuda",
    show_default=True,
    help="cuda or cuda:N; with cpu it is a dry run, which tries out this script and checks no GPU.",
)
@click.option("--precision", "precisions", multiple=True, type=click.Choice(["fp16", "bf16", "fp32"]))
@click.option("--model", default="SiT-S/2", show_default=True, help="Its shape, with random weights.")
@click.option("--replays", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / "build" / "gpu-check")
@click.option("--out", type=click.Path(path_type=Path), help=f"Folder for {NAME}. Default: {RESULTS}.")
def main(
    backends: tuple[str, ...],
    device: str,
    precisions: tuple[str, ...],
    model: str,
    replays: int,
    work: Path,
    out: Path | None,
) -> None:
    """Check parity, graphs, memory, threads and refusals of every backend, and write them down.

    Ends with 0 if all that ran holds, and with 3 if something does not or no GPU backend ran. Backends
    may be checked in several runs: each replaces its part of the file.
    """
    dry_run = device == "cpu"
    if dry_run and out is None:
        raise click.UsageError("a dry run with --device cpu has no place among the results: give --out")
    known = targets_for(device)
    if wrong := [name for name in backends if name not in known]:
        raise click.UsageError(f"{wrong[0]} does not run on {device}; known are {', '.join(known)}")
    try:
        checking = import_module("flowturbo_trt.benchmarks.gpu.checking")
        options = checking.CheckOptions(
            work, device, model, precisions or checking.CheckOptions.precisions, replays
        )
        path = (out or RESULTS) / NAME
        document = check_all({name: known[name] for name in backends or known}, options, path)
    except (FlowTurboError, ModuleNotFoundError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    if out is None:
        update_readme()
    sys.exit(report(document, dry_run=dry_run))


def check_all(targets: dict[str, Target], options: Any, path: Path) -> dict[str, Any]:
    """Check the targets one by one, and write what is known after each; raises ResultsError."""
    dry_run = options.device == "cpu"
    check: Checking = import_module("flowturbo_trt.benchmarks.gpu.checking").check_target
    document = open_results(path, dry_run=dry_run)
    found = {entry["target"]: entry for entry in document.get("targets", [])}
    gone = None if dry_run else no_gpu()
    for name, target in targets.items():
        if gone is None:
            found[name] = check(name, target, options, click.echo)
        else:
            click.echo(f"– {name}: not run: {gone}")
            found[name] = {"target": name, "status": "does not run", "why": gone}
        document["answer"] = answer(found.get("tensorrt-rtx"))
        document["targets"] = list(found.values())
        save_results(path, document)
    return document


def answer(rtx: dict[str, Any] | None) -> str:
    """Answer the first question: does TensorRT for RTX load and run its plans on this GPU."""
    question = "TensorRT for RTX loads and runs its plans on this GPU"
    if rtx is None:
        return f"{question}: not tried"
    tries = [
        f"{plan['compiled_for']}: {'yes' if plan['runs'] else 'no, ' + plan['why']}"
        for plan in rtx.get("plans", [])
    ]
    if rtx["status"] == "ran":
        return f"{question}: yes ({'; '.join(tries)})"
    return f"{question}: {rtx['status']} ({'; '.join(tries) or rtx['why']})"


def report(document: dict[str, Any], *, dry_run: bool) -> int:
    """Say how it ended and return the exit status."""
    click.echo(document["answer"])
    ran = [entry for entry in document["targets"] if entry["status"] == "ran"]
    counts = {
        status: sum(check["status"] == status for entry in ran for check in entry["checks"])
        for status in ("passed", "failed", "not run")
    }
    click.echo(", ".join(f"{count} {status}" for status, count in counts.items()))
    if dry_run:
        click.echo("no GPU backend ran: this was a dry run on the CPU")
    elif not ran:
        click.echo("no GPU backend ran: nothing was checked")
    return 3 if dry_run or not ran or counts["failed"] else 0


if __name__ == "__main__":
    main()
