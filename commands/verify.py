"""`flowturbo_trt verify`."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import onnxruntime

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.commands.common import CHECK_FAILED, Console, make_command
from flowturbo_trt.commands.running import provider_option, threads_option
from flowturbo_trt.evaluation.parity.bisect import Bisection, bisect, require_tools
from flowturbo_trt.evaluation.parity.options import ParityOptions
from flowturbo_trt.evaluation.parity.results import EngineParity, ParityReport, Status, TrajectoryParity
from flowturbo_trt.evaluation.parity.verification import verify

SIGNS: dict[Status, str] = {"passed": "✓", "failed": "✗", "not run": "–"}


@make_command(name="verify", short_help="Hold a bundle's engines against its float32 graphs.")
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--backend", "backends", multiple=True, help="Verify this one only; repeatable.")
@click.option("--schedule", "schedules", multiple=True, help="Default: the bundle's default; repeatable.")
@click.option("--batch", "batches", multiple=True, type=int, help="Default: all of the bundle; repeatable.")
@click.option(
    "--images",
    type=click.IntRange(min=1),
    default=ParityOptions.images,
    show_default=True,
    help="Images to record, at least as many as the largest batch.",
)
@click.option("--seed", type=int, default=ParityOptions.seed, show_default=True, help="Of the first image.")
@click.option("--device", help="cpu, cuda or cuda:N. Default: what each backend is made for.")
@provider_option
@threads_option
@click.option("--bisect", "bisects", is_flag=True, help="Name the layer where a failed engine goes wrong.")
def command(console: Console, path: Path, bisects: bool, **given: Any) -> None:
    """Hold the engines of BUNDLE against its float32 graphs: every call, trajectories, images.

    Exit status 3 if an engine is further off than its precision allows.

    \b
    flowturbo_trt verify bundle --schedule H1P5R3 --bisect
    """
    if bisects:
        require_tools()
    if not console.shows_tracebacks:
        # What ONNX Runtime would print is raised as an error as well. The process is ours to silence.
        onnxruntime.set_default_logger_severity(4)
    bundle = Bundle.open(path)
    with console.progress() as progress:
        report = verify(bundle, ParityOptions(**given), progress)
        failed = [result for result in report.engines if result.status == "failed"] if bisects else []
        bisections = []
        for done, result in enumerate(failed):
            progress(f"bisecting {result.engine.network}", done, len(failed))
            bisections.append(bisect(bundle, result, report.recordings))
    holds = report.count("failed") == 0
    document = {"command": "verify", "bundle": str(path), "passed": holds, **describe(report, bisections)}
    console.result(document, "\n".join([*lines(report), *map(found, bisections), "", verdict(report)]))
    if not holds:
        raise click.exceptions.Exit(CHECK_FAILED)


def verdict(report: ParityReport) -> str:
    """Say in a line whether the bundle can be trusted, and what that does not include."""
    counts = {status: report.count(status) for status in SIGNS}
    left_out = f"; {counts['not run']} not run here" if counts["not run"] else ""
    if counts["failed"]:
        return f"✗ {counts['failed']} of {len(report.checks)} checks failed{left_out}"
    return f"✓ all {counts['passed']} checks hold{left_out}"


def lines(report: ParityReport) -> list[str]:
    """Lay the results out for people: one line per engine, one per trajectory."""
    rows: list[tuple[str, ...]] = [("", "network", "variant", "on", "precision", "worst")]
    rows += [_engine_row(result) for result in (*report.torch, *report.engines)]
    rows.append(("", "schedule", "variant", "on", "precision", "latents and images"))
    rows += [_trajectory_row(result) for result in report.trajectories]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    table = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)), row[-1]])
        for row in rows
    ]
    return [*table, *report.notes]


def found(bisection: Bisection) -> str:
    """Say where an engine goes wrong."""
    engine, first = bisection.engine, bisection.divergence
    name = engine.name
    if first is None:
        return f"bisecting {name} on {engine.backend}: {bisection.note}"
    node = f"{first.op_type} {first.node}".strip()
    weights = f", with {', '.join(first.weights)}" if first.weights else ""
    return (
        f"bisecting {name} on {engine.backend}: {node} differs first{weights}: "
        f"{first.tensor} by {first.relative_l2:.2g}, at most {first.limit:.2g} is allowed"
    )


def _engine_row(result: EngineParity) -> tuple[str, ...]:
    engine = result.engine
    call, image = result.worst_call, result.worst_image
    text = result.failure or f"not run: {result.not_run}"
    if call is not None:
        allowed = call.amplification * result.limits.call_relative_l2
        text = (
            f"relative L2 {call.relative_l2:.2g} (at most {allowed:.2g}), "
            f"cosine 1 − {max(0.0, 1 - call.cosine):.1g}: "
            f"{call.schedule} call {call.call}, t {call.t:.3g}, half {call.half}, batch {call.batch}, "
            f"row {call.row}"
        )
    elif image is not None:
        text = (
            f"PSNR {image.psnr:.1f} dB (at least {result.limits.decoder_psnr:g}), off by up to "
            f"{image.max_level_difference} levels: {image.schedule}, batch {image.batch}, row {image.row}"
        )
    if result.file_fault is not None:
        text = f"{result.file_fault}; {text}"
    sign = SIGNS[result.status]
    return (sign, engine.network, engine.variant or "", _backend(engine.backend), engine.precision, text)


def _backend(name: str) -> str:
    return "graph against torch" if name == "torch" else name


def _trajectory_row(result: TrajectoryParity) -> tuple[str, ...]:
    text = f"{result.failure or f'not run: {result.not_run}'}, batch {result.batch}"
    if result.failure is None and result.not_run is None:
        text = f"relative L2 {result.relative_l2:.2g} (at most {result.allowed:.2g})"
        if result.image is not None and result.limits is not None:
            text += f", image PSNR {result.image.psnr:.1f} dB (at least {result.limits.image_psnr:g})"
        if result.left_at is not None:
            text += f", off after step {result.left_at + 1} of {len(result.per_step)}"
        text += f", batch {result.batch}, row {result.row}"
    return (SIGNS[result.status], result.schedule, result.variant, result.backend, result.precision, text)


def describe(report: ParityReport, bisections: list[Bisection]) -> dict[str, Any]:
    """Return everything as JSON data: what is no finite number is text (nan, inf)."""
    document = {
        "torch": [_describe_engine(result) for result in report.torch],
        "engines": [_describe_engine(result) for result in report.engines],
        "trajectories": [asdict(result) | {"status": result.status} for result in report.trajectories],
        "bisections": [
            _name(b.engine) | {"divergence": b.divergence and asdict(b.divergence), "note": b.note}
            for b in bisections
        ],
        "notes": list(report.notes),
    }
    plain: dict[str, Any] = _finite(document)
    return plain


def _describe_engine(result: EngineParity) -> dict[str, Any]:
    described = asdict(result) | _name(result.engine) | {"status": result.status}
    del described["engine"]
    return described


def _name(engine: Any) -> dict[str, Any]:
    return {key: getattr(engine, key) for key in ("network", "variant", "backend", "precision", "file")}


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not know, by their names."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
