"""`flowturbo_trt inspect`."""

import json
from pathlib import Path

import click

from flowturbo_trt.bundle.manifest import Manifest, to_json
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.commands.common import Console, make_command


@make_command(name="inspect", short_help="Show what a bundle holds and check every file of it.")
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
def command(console: Console, path: Path) -> None:
    """Show what BUNDLE holds and check every file of it against its hash."""
    bundle = Bundle.open(path)
    bundle.check_all()
    console.result(
        {"command": "inspect", "bundle": str(path), "manifest": json.loads(to_json(bundle.manifest))},
        f"{summary(bundle)}\n\nall {len(bundle.manifest.files)} files are as they were built",
    )


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
    ]


def _schedules(manifest: Manifest) -> list[str]:
    lines = []
    for text, programs in manifest.programs.items():
        program = next(iter(programs.values()))
        counts = ", ".join(f"{count} {network}" for (network, _), count in program.evaluations().items())
        default = " (default)" if text == manifest.default_schedule else ""
        lines.append(f"schedule   {text}{default}: {counts} evaluations")
    return lines


def _engines(manifest: Manifest) -> list[str]:
    rows = [("network", "variant", "backend", "precision", "batches", "MB", "target", "file")]
    for engine in manifest.engines:
        size = sum(manifest.files[file].bytes for file in engine.files)
        batches = ",".join(map(str, engine.batches))
        target = ",".join(engine.targets) or "any"
        row = (engine.network, engine.variant or "", engine.backend, engine.precision, batches)
        rows.append((*row, f"{size / 1e6:.1f}", target, engine.file))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
