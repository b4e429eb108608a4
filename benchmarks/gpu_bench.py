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

from flowturbo_trt.benchmarks.gpu.cases import MODELS, TORCH, Case, all_cases, merge, unfinished
from flowturbo_trt.benchmarks.gpu.command import DEVICE_HELP, choose_targets, errors_in_one_line
from flowturbo_trt.benchmarks.gpu.results import open_results, save_results
from flowturbo_trt.benchmarks.gpu.targets import DRY_TARGETS, TARGETS, Target
from flowturbo_trt.benchmarks.tables import RESULTS, ROOT, update_pages

NAME = "gpu_bench.json"
BATCHES = (1, 2, 4, 8)
SCHEDULES = ("H1P5R3", "H8P9R5", "AB2x8")
PRECISIONS = ("fp16", "bf16")


@click.command()
@click.option("--model", type=click.Choice(MODELS), default="SiT-XL/2", help="Its shape; default: SiT-XL/2.")
@click.option("--schedule", "schedules", multiple=True, help=f"Default: {', '.join(SCHEDULES)}.")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help=f"Default: {BATCHES}.")
@click.option("--precision", "precisions", multiple=True, type=click.Choice([*PRECISIONS, "fp32"]))
@click.option("--backend", "backends", multiple=True, type=click.Choice([*TARGETS, *DRY_TARGETS]))
@click.option("--against", multiple=True, type=click.Choice([*TORCH, "nothing"]), help="Default: both.")
@click.option(
    "--target", "compiled_for", multiple=True, help="Compute capability of tensorrt-rtx plans, e.g. 8.9."
)
@click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), help="Begin no case that would end later."
)
@click.option("--again", is_flag=True, help="Measure what is measured already, too.")
@click.option("--device", default="cuda", show_default=True, help=DEVICE_HELP)
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / "build" / "gpu-bench")
@click.option("--out", type=click.Path(path_type=Path), help=f"Folder for {NAME}. Default: {RESULTS}.")
def main(
    model: str,
    schedules: tuple[str, ...],
    batches: tuple[int, ...],
    precisions: tuple[str, ...],
    backends: tuple[str, ...],
    against: tuple[str, ...],
    compiled_for: tuple[str, ...],
    minutes: float | None,
    again: bool,
    device: str,
    work: Path,
    out: Path | None,
) -> None:
    """Time whole trajectories, decoding included, of every backend and of torch, taking turns.

    Ends with 0 when all cases are measured, with 3 if some are left (run it again) or no GPU backend ran.
    """
    targets, gpu = choose_targets(device, backends, out)
    cases = all_cases(model, schedules or SCHEDULES, batches or BATCHES, precisions or PRECISIONS)
    with errors_in_one_line():
        options = import_module("flowturbo_trt.benchmarks.gpu.benching").BenchOptions(
            work,
            device,
            # For all, so that slices with a few of them run the same engines.
            tuple(sorted({*BATCHES, *(case.batch for case in cases)})),
            against=tuple(name for name in against or TORCH if name in TORCH),
            compiled_for=compiled_for,
        )
        path = (out or RESULTS) / NAME
        document, left = measure_all(cases, targets, options, path, gpu, minutes=minutes, again=again)
    if out is None:
        update_pages()
    sys.exit(report(document, left))


def measure_all(
    cases: list[Case],
    targets: dict[str, Target],
    options: Any,
    path: Path,
    gpu: dict[str, Any] | None,
    *,
    minutes: float | None,
    again: bool,
    now: Callable[[], float] = time.monotonic,
) -> tuple[dict[str, Any], int]:
    """Measure case by case, write what is known after each; return that, and how many cases are left."""
    benching = import_module("flowturbo_trt.benchmarks.gpu.benching")
    document = open_results(path, gpu)
    entries: list[dict[str, Any]] = document.get("cases", [])
    names = benching.contestant_names(targets, options)
    todo = cases if again else list(unfinished(cases, entries, names))
    bench = benching.Bench(targets, options, gpu and gpu["name"], click.echo)
    started, longest = now(), 0.0
    for done, case in enumerate(todo):
        began = now()
        if minutes is not None and done and began - started + longest > 60 * minutes:
            return document, len(todo) - done
        entry = bench.measure(case)
        entries = merge(entries, entry)
        document["cases"] = entries
        save_results(path, document)
        longest = max(longest, now() - began)
        for line in lines(entry):
            click.echo(line)
    return document, 0


def lines(entry: dict[str, Any]) -> list[str]:
    """Tell what each contestant of a case took."""
    return [
        f"  {name:32} {found['median_ms']:9.3f} ms, relative L2 {found['relative_l2']:.1e}"
        if "failure" not in found
        else f"  {name:32} {found['failure']}"
        for name, found in entry["contestants"].items()
    ]


def report(document: dict[str, Any], left: int) -> int:
    """Say how it ended and return the exit status."""
    ran = any(
        name not in TORCH and "failure" not in found
        for entry in document.get("cases", [])
        for name, found in entry["contestants"].items()
    )
    if left:
        click.echo(f"{left} cases are left: run it again to go on")
    if document["dry_run"]:
        click.echo("no GPU backend ran: this was a dry run on the CPU")
    elif not ran:
        click.echo("no GPU backend ran")
    return 3 if left or document["dry_run"] or not ran else 0


if __name__ == "__main__":
    main()
