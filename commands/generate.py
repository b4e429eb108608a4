"""`flowturbo_trt generate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import onnxruntime

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.commands.common import Console, make_command
from flowturbo_trt.commands.files import IntegerList
from flowturbo_trt.commands.running import backend_option, device_option, provider_option
from flowturbo_trt.generation.options import GenerationOptions, make_plan
from flowturbo_trt.generation.plan import FILE_FORMATS, LABEL_RULES, GenerationPlan
from flowturbo_trt.generation.run import Summary, Workers, generate_images
from flowturbo_trt.generation.shards import finished_shards
from flowturbo_trt.sampling.noise import MAX_SEED

LOCAL = "local"


class Labels(IntegerList):
    """A rule by its name, or labels that are taken in turn."""

    name = f"{'|'.join(LABEL_RULES)}|{IntegerList.name}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value in LABEL_RULES else tuple(super().convert(value, param, ctx))


@make_command(name="generate", short_help="Generate many images from a bundle, resumable, on many workers.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--num",
    type=click.IntRange(min=1),
    default=GenerationOptions.num,
    show_default=True,
    help="Images to make.",
)
@click.option("--schedule", help="E.g. H1P5R3, H8, AB2x8. Default: the bundle's.")
@click.option("--guidance", type=float, help="Guidance scale; 1 is none. Default: the bundle's.")
@click.option(
    "--labels",
    type=Labels(),
    default=GenerationOptions.labels,
    show_default=True,
    help="balanced: all classes in turn; random; or a list, taken in turn.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=GenerationOptions.seed,
    help="What the seeds of all images follow from. Default: 0.",
)
@click.option(
    "--format",
    type=click.Choice(FILE_FORMATS),
    default=GenerationOptions.format,
    show_default=True,
    help="npz: shards with arr_0 (n,H,W,3), label and seed; png: one file per image in OUT/images.",
)
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    default=GenerationOptions.shard_size,
    show_default=True,
    help="Images of an npz file, and the most that is lost of a worker's work when it ends suddenly.",
)
@click.option(
    "--batch", type=click.IntRange(min=1), help="Images at a time. Default: the largest batch built for."
)
@backend_option
@device_option
@provider_option
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=Workers.threads,
    help="CPU threads of a worker. Default: its share of the cores; with --ray 1.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Processes. Default: 1; with --ray as many as fit."
)
@click.option(
    "--ray",
    metavar="[ADDRESS]",
    is_flag=False,
    flag_value=LOCAL,
    help="Let workers of Ray make the images: of the cluster at ADDRESS (auto: the one this machine is part "
    "of), or started here. The bundle must be at the same path on every machine; OUT only on this one.",
)
@click.option(
    "--gpus-per-worker",
    type=click.FloatRange(min=0),
    help="GPUs of a Ray worker. Default: 1 on GPUs, else 0.",
)
def command(
    console: Console,
    bundle: Path,
    out: Path,
    device: str | None,
    threads: int,
    workers: int | None,
    ray: str | None,
    gpus_per_worker: float | None,
    **options: Any,
) -> None:
    """Generate images from BUNDLE into the folder OUT; the same command goes on with what is missing.

    \b
    flowturbo_trt generate bundle images --num 50000 --schedule H1P5R3 --guidance 1.5
    """
    if gpus_per_worker is not None and ray is None:
        raise click.UsageError("--gpus-per-worker is of Ray's workers; add --ray")
    if not console.shows_tracebacks:
        # What ONNX Runtime would print is raised as an error as well. The process is ours to silence.
        onnxruntime.set_default_logger_severity(4)
    plan = make_plan(bundle, GenerationOptions(device=device, **options))
    who = Workers(workers, threads, device, ray, gpus_per_worker)
    try:
        with console.progress() as progress:
            summary = generate_images(plan, bundle, out, who, progress)
    except KeyboardInterrupt:
        there = sum(len(plan.indices(shard)) for shard in finished_shards(out, plan))
        console.info(f"{out}: {there} of {plan.num} images are there; the same command goes on from them")
        raise
    evaluations = Bundle.open(bundle).manifest.schedule(plan.schedule).evaluations()
    console.result(document(plan, evaluations, out, summary), text(plan, out, summary))


def document(
    plan: GenerationPlan, evaluations: Mapping[str, int], out: Path, summary: Summary
) -> dict[str, Any]:
    """Return what was done for --json."""
    return {
        "command": "generate",
        "out": str(out),
        "images": summary.images,
        "images_made": summary.images_made,
        "images_found": summary.images_found,
        "shards": summary.shards,
        "shards_found": summary.shards_found,
        "seconds": summary.seconds,
        "images_per_second": summary.images_per_second,
        "shards_by_worker": dict(summary.workers),
        "schedule": plan.schedule,
        "evaluations": dict(evaluations),
    }


def text(plan: GenerationPlan, out: Path, summary: Summary) -> str:
    """Return what was done in a line."""
    if not summary.images_made:
        return f"{out}: all {summary.images} images were there"
    found = f", {summary.images_found} were there" if summary.images_found else ""
    return (
        f"{summary.images_made} images with {plan.schedule} in {summary.seconds:.1f} s "
        f"({summary.images_per_second:.1f} images/s){found}: {out}"
    )
