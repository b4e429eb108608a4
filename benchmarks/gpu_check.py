"""Check every backend that runs on this machine's GPU: `make gpu-check`, or this file as a module.

Runs from a checkout, without a network, with whatever is installed.
"""

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from flowturbo_trt.benchmarks.gpu.cases import MODELS
from flowturbo_trt.benchmarks.gpu.command import DEVICE_HELP, choose_targets, errors_in_one_line
from flowturbo_trt.benchmarks.gpu.results import open_results, save_results
from flowturbo_trt.benchmarks.gpu.targets import DRY_TARGETS, TARGETS, Target
from flowturbo_trt.benchmarks.tables import RESULTS, ROOT, update_pages

NAME = "gpu_check.json"
Checking = Callable[[str, Target, Any, Callable[[str], None]], Iterator[dict[str, Any]]]


@click.command()
@click.option("--backend", "backends", multiple=True, type=click.Choice([*TARGETS, *DRY_TARGETS]))
@click.option("--device", default="cuda", show_default=True, help=DEVICE_HELP)
@click.option("--precision", "precisions", multiple=True, type=click.Choice(["fp16", "bf16", "fp32"]))
@click.option("--model", type=click.Choice(MODELS), default="SiT-S/2", help="Its shape; default: SiT-S/2.")
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
    targets, gpu = choose_targets(device, backends, out)
    with errors_in_one_line():
        kind = import_module("flowturbo_trt.benchmarks.gpu.checking").CheckOptions
        options = kind(work, device, model, precisions or kind.precisions, replays)
        document = check_all(targets, options, (out or RESULTS) / NAME, gpu)
    if out is None:
        update_pages()
    sys.exit(report(document))


def check_all(
    targets: dict[str, Target], options: Any, path: Path, gpu: dict[str, Any] | None
) -> dict[str, Any]:
    """Check the targets one by one, and write what is known after each check; raises ResultsError."""
    check: Checking = import_module("flowturbo_trt.benchmarks.gpu.checking").check_target
    document = open_results(path, gpu)
    found = {entry["target"]: entry for entry in document.get("targets", [])}
    for name, target in targets.items():
        for entry in check(name, target, options, click.echo):
            found[name] = entry
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


def report(document: dict[str, Any]) -> int:
    """Say how it ended and return the exit status."""
    click.echo(document["answer"])
    ran = [entry for entry in document["targets"] if entry["status"] == "ran"]
    counts = {
        status: sum(check["status"] == status for entry in ran for check in entry["checks"])
        for status in ("passed", "failed", "not run")
    }
    click.echo(", ".join(f"{count} {status}" for status, count in counts.items()))
    if document["dry_run"]:
        click.echo("no GPU backend ran: this was a dry run on the CPU")
    elif not ran:
        click.echo("no GPU backend ran: nothing was checked")
    return 3 if document["dry_run"] or not ran or counts["failed"] else 0


if __name__ == "__main__":
    main()
