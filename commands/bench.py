"""`flowturbo_trt bench`."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import onnxruntime

from flowturbo_trt.bundle.environment import versions
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.commands.common import JSON_VERSION, Console, evaluation_counts, make_command
from flowturbo_trt.commands.files import check_outputs
from flowturbo_trt.commands.running import running_options
from flowturbo_trt.evaluation.report import machine
from flowturbo_trt.evaluation.speed.benchmark import (
    ALTERNATIVES,
    STAGES,
    Alternative,
    Benchmark,
    BenchmarkError,
    BenchmarkOptions,
    Case,
    Measured,
)
from flowturbo_trt.evaluation.speed.latency import Stability, Timing

DEFAULTS = BenchmarkOptions()
# Of fewer, the 99th percentile is no more than the largest.
SAMPLES_FOR_P99 = 100


class Names(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Names of alternatives, separated by commas."""

    name = ",".join(ALTERNATIVES)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        names = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
        for name in names:
            if name not in ALTERNATIVES:
                self.fail(f"{name!r} is not known; known are {', '.join(ALTERNATIVES)}", param, ctx)
        return tuple(dict.fromkeys(names))


@make_command(name="bench", short_help="Measure a bundle's latency, also against torch.")
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--schedule", "schedules", multiple=True, help="Default: the bundle's default; repeatable.")
@click.option("--batch", "batches", multiple=True, type=int, help="Default: all of the bundle; repeatable.")
@running_options
@click.option("--guidance", type=float, help="Guidance scale; 1 is none. Default: the bundle's.")
@click.option("--against", type=Names(), default=(), help="Run the same in torch, in turn with the engines.")
@click.option(
    "--precision-of-median",
    type=click.FloatRange(0, 1, min_open=True),
    default=DEFAULTS.stability.precision,
    show_default=True,
    help="Measure until the median is known this well: the half-width of its 95 % interval, as a fraction.",
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(0, min_open=True),
    default=DEFAULTS.stability.seconds,
    show_default=True,
    help="Stop measuring after this time, for each schedule and batch, and its parts again.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON document to this file as well.")
def command(
    console: Console,
    path: Path,
    schedules: tuple[str, ...],
    batches: tuple[int, ...],
    precision_of_median: float,
    max_seconds: float,
    out: Path | None,
    **given: Any,
) -> None:
    """Measure what BUNDLE costs: latency, its parts, start-up and memory, for every schedule and batch.

    \b
    flowturbo_trt bench bundle --schedule H1P5R3 --schedule H8 --against torch,torch-compile
    """
    if math.isnan(precision_of_median) or math.isnan(max_seconds):
        raise click.UsageError("--precision-of-median or --max-seconds is no number")
    if out is not None:
        check_outputs([out], None)
    if not console.shows_tracebacks:
        # What ONNX Runtime would print is raised as an error as well. The process is ours to silence.
        onnxruntime.set_default_logger_severity(4)
    bundle = Bundle.open(path)
    sizes = check_batches(bundle, batches)
    chosen = [bundle.manifest.schedule(text) for text in schedules or (None,)]
    stability = Stability(precision=precision_of_median, seconds=max_seconds)
    benchmark = Benchmark(bundle, BenchmarkOptions(stability=stability, **given))
    # All of them first: what the bundle lacks shows before anything is timed.
    cases = [benchmark.case(schedule, batch) for schedule in dict.fromkeys(chosen) for batch in sizes]
    results = run(console, benchmark, cases)
    document = describe(path, cases[0], {**given, **benchmark.setting()}, stability, results)
    if out is not None:
        text = json.dumps({"version": JSON_VERSION, **document}, indent=1, ensure_ascii=False)
        out.write_text(text + "\n", encoding="utf-8")
    console.result(document, "\n\n".join([heading(document), *map(paragraph, results)]))
    if any(alternative.failure for measured in results for alternative in measured.alternatives):
        raise click.exceptions.Exit(1)


def check_batches(bundle: Bundle, batches: tuple[int, ...]) -> tuple[int, ...]:
    """Return the batch sizes to measure; refuse one that engines were not built for."""
    built = bundle.manifest.batches
    for batch in batches:
        if batch not in built:
            raise BenchmarkError(
                f"batch {batch}: the bundle was built for {', '.join(map(str, built))}; take one of these, "
                f"or build it with --batch {batch}"
            )
    return tuple(dict.fromkeys(batches)) or built


def run(console: Console, benchmark: Benchmark, cases: list[Case]) -> list[Measured]:
    """Measure case by case, with progress on the console."""
    results = []
    total = len(cases) * len(STAGES)
    with console.progress() as progress:
        for index, case in enumerate(cases):

            def say(stage: str, index: int = index, case: Case = case) -> None:
                done = index * len(STAGES) + STAGES.index(stage)
                progress(f"{case.schedule}, batch {case.batch}: {stage}", done, total)

            results.append(benchmark.measure(case, say))
        progress("done", total, total)
    return results


def describe(
    path: Path, case: Case, given: dict[str, Any], stability: Stability, results: list[Measured]
) -> dict[str, Any]:
    """Return the JSON document: configuration, machine, versions, and one entry per case."""
    return {
        "command": "bench",
        "bundle": str(path),
        **given,
        "guidance": float(case.request.guidance[0]),
        "stability": asdict(stability),
        "machine": machine(),
        "versions": versions(),
        "results": [_result(measured) for measured in results],
    }


def _result(measured: Measured) -> dict[str, Any]:
    case, parts = measured.case, measured.breakdown
    return {
        "schedule": str(case.schedule),
        "batch": case.batch,
        "variant": case.variant,
        "precision": case.precision,
        "evaluations": evaluation_counts(case.program),
        **_timing(measured.timing, case.batch),
        "shares": parts and parts.shares,
        "overhead": parts and parts.overhead,
        "overhead_interval": parts and _bounded(parts.overhead_interval),
        "breakdown_stable": parts and all(t.stable for t in (parts.whole, *parts.engines.values())),
        "startup": asdict(measured.startup),
        "weight_bytes": measured.weight_bytes,
        "against": {a.name: _alternative(a, measured) for a in measured.alternatives},
    }


def _timing(timing: Timing, batch: int) -> dict[str, Any]:
    return {
        "median_ms": 1000 * timing.median,
        "interval_ms": _bounded((1000 * timing.interval[0], 1000 * timing.interval[1])),
        "p90_ms": 1000 * timing.quantile(0.9),
        "p99_ms": 1000 * timing.quantile(0.99),
        "ms_per_image": 1000 * timing.median / batch,
        "images_per_second": batch / timing.median,
        "samples": len(timing.samples),
        "stable": timing.stable,
    }


def _bounded(interval: tuple[float, float]) -> list[float] | None:
    # JSON knows no infinity, which is what too few samples give.
    return list(interval) if all(map(math.isfinite, interval)) else None


def _alternative(alternative: Alternative, measured: Measured) -> dict[str, Any]:
    if alternative.timing is None:
        return {"failure": alternative.failure}
    return {
        **_timing(alternative.timing, measured.case.batch),
        "ratio": alternative.timing.median / measured.timing.median,
        "relative_l2": alternative.relative_l2,
    }


def heading(document: dict[str, Any]) -> str:
    """Say where and how it was measured."""
    where = document["machine"]
    threads = f"threads: {document['threads']}"
    gpu = f", {where['gpu']}" if where["gpu"] else ""
    return (
        f"{document['bundle']} on {document['backend']} ({document['device']}, {threads}), guidance "
        f"{document['guidance']:g}; {where['cores']} cores of {where['cpu']}{gpu}"
    )


def paragraph(measured: Measured) -> str:
    """Tell one case in a few lines."""
    case, timing = measured.case, measured.timing
    evaluations = " + ".join(f"{n} {network}" for network, n in evaluation_counts(case.program).items())
    lines = [
        f"{case.schedule}, batch {case.batch} ({case.variant}, {case.precision}, {evaluations})",
        f"  latency    {_latency(timing)}",
        f"  per image  {1000 * timing.median / case.batch:.2f} ms, {case.batch / timing.median:.1f} images/s",
    ]
    if measured.breakdown is not None:
        parts = measured.breakdown
        shares = ", ".join(f"{name} {share:.1%}" for name, share in parts.shares.items())
        low, high = parts.overhead_interval
        lines.append(f"  shares     {shares}")
        lines.append(
            f"  overhead   {parts.overhead:+.1%} over the engines alone (95 %: {low:+.1%} to {high:+.1%})"
        )
    startup = measured.startup
    lines.append(
        f"  start      {startup.seconds:.2f} s from process start to the first batch, "
        f"median of {startup.runs}"
    )
    lines.append(
        f"  memory     {_megabytes(startup.loaded_bytes)} after loading, {_megabytes(startup.peak_bytes)} at "
        f"most, for {_megabytes(measured.weight_bytes)} of weights"
    )
    return "\n".join([*lines, *(_against(alternative, timing) for alternative in measured.alternatives)])


def _latency(timing: Timing) -> str:
    text = f"median {1000 * timing.median:.2f} ms, p90 {1000 * timing.quantile(0.9):.2f}, "
    if len(timing.samples) >= SAMPLES_FOR_P99:
        text += f"p99 {1000 * timing.quantile(0.99):.2f}, "
    text += f"{len(timing.samples)} samples"
    if timing.stable:
        return text
    low, high = timing.interval
    known = f"between {1000 * low:.2f} and {1000 * high:.2f}" if math.isfinite(low) else "not known"
    return f"{text}; NOT STABLE: the median is {known}, raise --max-seconds or quieten the machine"


def _against(alternative: Alternative, ours: Timing) -> str:
    name = f"  against    {alternative.name}: "
    if alternative.timing is None:
        return f"{name}not measured, {alternative.failure}"
    ratio = alternative.timing.median / ours.median
    return (
        f"{name}{_latency(alternative.timing)}; {ratio:.2f} × the {1000 * ours.median:.2f} ms here; "
        f"latents differ by {alternative.relative_l2:.1e} (relative L2)"
    )


def _megabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e6:.0f} MB"
