"""Time the whole trajectory on this machine's GPU, beside torch: `make gpu-bench`, or this file as a module.

Runs from a checkout, without a network, with whatever is installed, in slices: what is measured stays.
"""

import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from flowturbo_trt.benchmarks.gpu.cases import TORCH, Case, all_cases, merge, unfinished
from flowturbo_trt.benchmarks.gpu.results import open_results, save_results
from flowturbo_trt.benchmarks.gpu.targets import DRY_TARGETS, TARGETS, Target, no_gpu, targets_for
from flowturbo_trt.benchmarks.tables import RESULTS, ROOT, update_readme
from flowturbo_trt.sampling.errors import FlowTurboError

NAME = "gpu_bench.json"
BATCHES = (1, 2, 4, 8)
SCHEDULES = ("H1P5R3", "H8P9R5", "AB2x8")
PRECISIONS = ("fp16", "bf16")


@click.command()
@click.option("--model", default="SiT-XL/2", show_default=True, help="Its shape, with random weights.")
@click.option("--schedule", "schedules", multiple=True, help=f"Default: {', '.join(SCHEDULES)}.")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help=f"Default: {BATCHES}.")
@click.option("--precision", "precisions", multiple=True, type=click.Choice([*PRECISIONS, "fp32"]))
@click.option("--backend", "backends", multiple=True, type=click.Choice([*TARGETS, *DRY_TARGETS]))
@click.option("--against", multiple=True, type=click.Choice([*TORCH, "nothing"]), help="Default: both.")
@click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), help="Begin no case that would end later."
)
@click.option("--again", is_flag=True, help="Measure what is measured already, too.")
@click.option(
    "--device",
    default="cuda",
    show_default=True,
    help="cuda or cuda:N; with cpu it is a dry run, which tries out this script and times no GPU.",
)
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / "build" / "gpu-bench")
@click.option("--out", type=click.Path(path_type=Path), help=f"Folder for {NAME}. Default: {RESULTS}.")
def main(
    model: str,
    schedules: tuple[str, ...],
    batches: tuple[int, ...],
    precisions: tuple[str, ...],
    backends: tuple[str, ...],
    against: tuple[str, ...],
    minutes: float | None,
    again: bool,
    device: str,
    work: Path,
    out: Path | None,
) -> None:
    """Time whole trajectories, decoding included, of every backend and of torch, taking turns.

    Ends with 0 when all cases are measured, with 3 if some are left (run it again) or no GPU backend ran.
    """
    if device == "cpu" and out is None:
        raise click.UsageError("a dry run with --device cpu has no place among the results: give --out")
    known = targets_for(device)
    if wrong := [name for name in backends if name not in known]:
        raise click.UsageError(f"{wrong[0]} does not run on {device}; known are {', '.join(known)}")
    if device != "cpu" and (gone := no_gpu()) is not None:
        click.echo(f"no GPU backend ran, nothing was measured: {gone}")
        sys.exit(3)
    targets = {name: known[name] for name in backends or known}
    cases = all_cases(model, schedules or SCHEDULES, batches or BATCHES, precisions or PRECISIONS)
    path = (out or RESULTS) / NAME
    try:
        benching = import_module("flowturbo_trt.benchmarks.gpu.benching")
        options = benching.BenchOptions(
            work,
            device,
            # For all, so that slices with a few of them run the same engines.
            tuple(sorted({*BATCHES, *(case.batch for case in cases)})),
            against=tuple(name for name in against or TORCH if name in TORCH),
        )
        left = measure_all(cases, targets, options, path, minutes=minutes, again=again)
    except (FlowTurboError, ModuleNotFoundError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    if out is None:
        update_readme()
    sys.exit(report(left, dry_run=device == "cpu"))


def measure_all(
    cases: list[Case],
    targets: dict[str, Target],
    options: Any,
    path: Path,
    *,
    minutes: float | None,
    again: bool,
    now: Callable[[], float] = time.monotonic,
) -> int:
    """Measure case by case, write what is known after each, and return how many are left."""
    benching = import_module("flowturbo_trt.benchmarks.gpu.benching")
    document = open_results(path, dry_run=options.device == "cpu")
    entries: list[dict[str, Any]] = document.get("cases", [])
    names = benching.contestant_names(targets, options)
    todo = cases if again else list(unfinished(cases, entries, names))
    bench = benching.Bench(targets, options, click.echo)
    started, longest = now(), 0.0
    for done, case in enumerate(todo):
        began = now()
        if minutes is not None and done and began - started + longest > 60 * minutes:
            return len(todo) - done
        entry = bench.measure(case)
        entries = merge(entries, entry)
        document["cases"] = entries
        save_results(path, document)
        longest = max(longest, now() - began)
        for line in lines(entry):
            click.echo(line)
    return 0


def lines(entry: dict[str, Any]) -> list[str]:
    """Tell what each contestant of a case took."""
    return [
        f"  {name:32} {found['median_ms']:9.3f} ms, relative L2 {found['relative_l2']:.1e}"
        if "failure" not in found
        else f"  {name:32} {found['failure']}"
        for name, found in entry["contestants"].items()
    ]


def report(left: int, *, dry_run: bool) -> int:
    """Say how it ended and return the exit status."""
    if left:
        click.echo(f"{left} cases are left: run it again to go on")
    if dry_run:
        click.echo("no GPU backend ran: this was a dry run on the CPU")
    return 3 if left or dry_run else 0


if __name__ == "__main__":
    main()
