"""`flowturbo_trt inspect`."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.manifest_json import to_json
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.commands.common import Console, evaluation_counts, make_command
from flowturbo_trt.commands.forecast import Forecast, columns, cost_lines, memory_lines
from flowturbo_trt.export.recipe_notes import read_notes
from flowturbo_trt.runtime.backend import PROVIDERS


@make_command(name="inspect", short_help="Show what a bundle holds and check every file of it.")
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--schedule", help="Whose memory and cost to tell. Default: the bundle's; the cost of all.")
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=int,
    help="Batch sizes to tell them for. Default: all; repeatable.",
)
@click.option(
    "--backend", help="What runs the engines. Default: memory of all, cost of the one that is used."
)
@click.option("--provider", type=click.Choice(PROVIDERS), help="What ONNX Runtime is to run engines on.")
def command(
    console: Console,
    path: Path,
    schedule: str | None,
    batches: tuple[int, ...],
    backend: str | None,
    provider: str | None,
) -> None:
    """Show what BUNDLE holds and check every file of it against its hash.

    Told as well, without loading anything: what it will hold in memory, and what an image costs.

    \b
    flowturbo_trt inspect bundle
    flowturbo_trt inspect bundle --schedule H8 --batch 8 --backend tensorrt-rtx
    """
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    forecast = Forecast(manifest, schedule, batches, backend, provider)
    memory, unplanned = forecast.memory()
    bundle.check_all()
    costs, uncounted = forecast.costs(console.info)
    document = {
        "command": "inspect",
        "bundle": str(path),
        "manifest": json.loads(to_json(manifest)),
        "memory": [{"schedule": forecast.schedule, "total": p.total, **asdict(p)} for p in memory],
        "unplanned": unplanned,
        "costs": [asdict(cost) for cost in costs],
        "uncounted": uncounted,
    }
    lines = [
        summary(bundle),
        *(line for plan in memory for line in ("", *memory_lines(plan, forecast.schedule))),
        *(f"memory is not planned: {reason}" for reason in unplanned),
        "",
        *(cost_lines(costs, forecast.cost_backend) if costs else [f"costs are not counted: {uncounted}"]),
        "",
        f"all {len(manifest.files)} files are as they were built",
    ]
    console.result(document, "\n".join(lines))


def summary(bundle: Bundle) -> str:
    """Describe a bundle in a few lines for people."""
    manifest = bundle.manifest
    return "\n".join(
        [f"bundle     {bundle.path}", *_model(manifest), *_schedules(manifest), "", *_engines(manifest)]
    )


def _model(manifest: Manifest) -> list[str]:
    model, config = manifest.model, manifest.model.config
    C, H, W = model.latent
    image = "no decoder" if model.image is None else f"images {model.image[0]}×{model.image[1]}"
    refiner = "none" if model.refiner_config is None else f"depth {model.refiner_config.get('depth')}"
    guided = "all" if model.guidance.channels == C else f"{model.guidance.channels} of {C}"
    sources = (f"{n} {s['file']} ({s['weights']}, {s['sha256'][:12]})" for n, s in manifest.sources.items())
    return [
        f"model      {model.family} depth {config.get('depth')}, width {config.get('hidden_size')}, patch "
        f"{config.get('patch_size')}, {config.get('num_classes')} classes; refiner {refiner}",
        f"shapes     latents {C}×{H}×{W}, {image}",
        f"guidance   {guided} channels, default scale {model.guidance.default:g}",
        *(f"{'from' if i == 0 else '':10} {source}" for i, source in enumerate(sources)),
        *(f"recipe     {text}" for text in _recipes(manifest)),
    ]


def _recipes(manifest: Manifest) -> Iterator[str]:
    for note in read_notes(manifest.options):
        if note is None:
            yield "told of in a form that this version does not know"
            continue
        verdict = "passed its gate" if note.passed else "DID NOT PASS its gate, built with --force"
        speed = f"speed measured on {', '.join(note.timed) or 'no backend'}"
        emulated = "".join(f"; {backend} ONLY EMULATES it" for backend in note.emulated)
        yield f"{note.kind} {note.file} ({note.sha256[:12]}): {verdict}; {speed}{emulated}"


def _schedules(manifest: Manifest) -> list[str]:
    lines = []
    for text, programs in manifest.programs.items():
        program = next(iter(programs.values()))
        counts = ", ".join(f"{count} {network}" for network, count in evaluation_counts(program).items())
        default = " (default)" if text == manifest.default_schedule else ""
        lines.append(f"schedule   {text}{default}: {counts} evaluations")
    return lines


def _engines(manifest: Manifest) -> list[str]:
    rows = [("network", "variant", "backend", "precision", "batches", "MB", "target", "file")]
    for engine in manifest.engines:
        size = sum(manifest.files[file].bytes for file in engine.files)
        # A conditioner's rows are times and labels, not images.
        batches = ",".join(map(str, engine.batches)) + (" rows" if engine.is_conditioner else "")
        target = ",".join(engine.targets) or "any"
        row = (engine.network, engine.variant or "", engine.backend, engine.precision, batches)
        rows.append((*row, f"{size / 1e6:.1f}", target, engine.file))
    return columns(rows)
