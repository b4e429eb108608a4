"""`flowturbo_trt build`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.bundle.table_file import load_table
from flowturbo_trt.commands.common import Console, make_command
from flowturbo_trt.commands.inspect import summary
from flowturbo_trt.export.build import build
from flowturbo_trt.export.compile import COMPILERS
from flowturbo_trt.export.options import CONDITIONING, KNOWN, BuildOptions
from flowturbo_trt.models.catalogue import resolve
from flowturbo_trt.runtime.backend import BACKENDS, DEFAULT_BACKEND


@make_command(name="build", short_help="Compile checkpoints into a bundle of engines.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--predictor", required=True, help="Checkpoint (.pt, .safetensors) or a public model's name.")
@click.option("--refiner", help="Checkpoint of its velocity refiner, for schedules with R steps.")
@click.option(
    "--decoder", required=True, help="Autoencoder (diffusers directory or one file), or `none` for latents."
)
@click.option("--model", help="A published model's shape, e.g. SiT-XL/2.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="JSON file with what checkpoints do not tell."
)
@click.option(
    "--batch",
    "batches",
    type=int,
    multiple=True,
    default=BuildOptions.batches,
    show_default=True,
    help="Batch size to build for; several are possible, as for the options below.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=BuildOptions.backends,
    show_default=True,
    help=f"What to compile for: {', '.join(COMPILERS)}.",
)
@click.option("--precision", "precisions", multiple=True, help=f"{', '.join(KNOWN)}; or BACKEND=PRECISION.")
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    type=click.Path(path_type=Path),
    help="What is in 8 bits where the precision is int8 or fp8 (see `calibrate precision`).",
)
@click.option(
    "--force",
    is_flag=True,
    help="Take a recipe whose gate did not hold, or 8 bits a backend only emulates; the manifest says so.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    default=BuildOptions.variants,
    show_default=True,
    help="guided, or unguided: half the work where guidance is 1.",
)
@click.option("--schedule", "schedules", multiple=True, help="Schedules to record; the first is the default.")
@click.option(
    "--table",
    "tables",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Solver table, from `calibrate solver --out`; comes with its schedule, table:NAME.",
)
@click.option(
    "--target", "targets", multiple=True, help="GPU compute capability, e.g. 8.9. Default: portable."
)
@click.option(
    "--conditioning",
    type=click.Choice(CONDITIONING),
    default=BuildOptions.conditioning,
    show_default=True,
    help="hoisted: what depends on time and label alone is evaluated once per request, not in every step.",
)
@click.option("--separate-plans", is_flag=True, help="A TensorRT plan for each batch size, not one for all.")
@click.option(
    "--strip",
    is_flag=True,
    help="Leave out float32 graphs that no engine loads (not for `verify`, `calibrate`).",
)
@click.option(
    "--preflight/--no-preflight",
    default=BuildOptions.preflight,
    help="Refuse to start with too little memory or disk. Default: refuse.",
)
@click.option("--download", is_flag=True, help="Fetch public models that are given by name.")
def command(
    console: Console,
    out: Path,
    predictor: str,
    refiner: str | None,
    decoder: str,
    config: Path | None,
    model: str | None,
    tables: tuple[Path, ...],
    download: bool,
    **others: object,
) -> None:
    """Compile checkpoints into a bundle of engines at OUT.

    \b
    flowturbo_trt build --predictor sit.pt --refiner refiner.pt --decoder vae/ \\
        --batch 1 --batch 8 --schedule H1P5R3 bundle
    """
    names = {"predictor": predictor, "refiner": refiner, "decoder": None if decoder == "none" else decoder}
    given = {role: Path(name) for role, name in names.items() if name}
    # Made, and so checked, before anything is fetched.
    loaded = tuple(map(load_table, tables))
    options = BuildOptions(**given, config=config, model=model, tables=loaded, **others)  # type: ignore[arg-type]
    with console.progress() as progress:
        found: dict[str, Any] = {
            role: resolve(name, download, progress) for role, name in names.items() if name
        }
        bundle: Bundle = build(replace(options, **found), out, progress, console.info)
    if not any(engine.backend in BACKENDS for engine in bundle.manifest.engines):
        console.info(f"this version runs none of these engines yet; --backend {DEFAULT_BACKEND} adds some")
    size = sum(record.bytes for record in bundle.manifest.files.values())
    console.result({"command": "build", "bundle": str(out), "bytes": size}, summary(bundle))
