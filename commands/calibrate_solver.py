"""`flowturbo_trt calibrate solver`."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import click
import onnxruntime

from flowturbo_trt.bundle.amend import rewrite_manifest, with_schedule
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import Endpoints, endpoint_errors, find_endpoints, make_rows
from flowturbo_trt.calibration.solver_table import Fit, FitOptions, fit_table
from flowturbo_trt.commands.common import JSON_VERSION, Console, make_command
from flowturbo_trt.commands.files import check_outputs
from flowturbo_trt.commands.running import running_options
from flowturbo_trt.evaluation.torch_reference import TorchOptions, load_torch_networks
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.schedule import Schedule

NAME = "calibrate solver"


@make_command(name="solver", short_help="Learn a solver table for a bundle's model.")
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--evaluations",
    type=click.IntRange(min=1),
    default=FitOptions.evaluations,
    show_default=True,
    help="Steps of the table, each an evaluation of the predictor.",
)
@click.option(
    "--refined",
    type=click.IntRange(min=0),
    default=FitOptions.refined,
    show_default=True,
    help="Further steps, each an evaluation of the refiner.",
)
@click.option("--name", help="Of the table, for schedules `table:NAME`. Default: lmsN, lmsNrM.")
@click.option(
    "--guidance", type=float, multiple=True, help="Scales to fit at, in turn. Default: the bundle's."
)
@click.option(
    "--trajectories",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Noises to fit on.",
)
@click.option(
    "--held-out",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Further noises, to judge by.",
)
@click.option(
    "--reference", default="H50", show_default=True, help="Schedule whose ends are taken for the true ones."
)
@click.option(
    "--beside",
    multiple=True,
    help="Schedules to judge on the held-out noises as well. Default: the bundle's default, and AB2xN.",
)
@click.option("--steps", type=int, default=FitOptions.steps, show_default=True, help="Optimizer steps.")
@click.option(
    "--batch", type=int, default=FitOptions.batch, show_default=True, help="Trajectories in each of them."
)
@click.option(
    "--learning-rate",
    type=float,
    default=FitOptions.learning_rate,
    show_default=True,
    help="Adam's, falling to zero.",
)
@click.option("--minutes", type=float, default=math.inf, help="End the fit after so long.")
@click.option(
    "--recompute",
    is_flag=True,
    help="Keep one evaluation at a time for the gradient: less memory, a third slower.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of noises and of their order.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file for table and figures.")
@click.option("--save", is_flag=True, help="Write the table into the bundle.")
@click.option("--default", "as_default", is_flag=True, help="And make it the bundle's default schedule.")
@running_options
def command(
    console: Console,
    path: Path,
    name: str | None,
    guidance: tuple[float, ...],
    trajectories: int,
    held_out: int,
    reference: str,
    beside: tuple[str, ...],
    minutes: float,
    seed: int,
    out: Path | None,
    save: bool,
    as_default: bool,
    backend: str | None,
    device: str | None,
    provider: str | None,
    threads: int,
    **given: Any,
) -> None:
    """Learn a linear multistep table for BUNDLE's model: coefficients over all past velocities, and a grid.

    \b
    flowturbo_trt calibrate solver bundle --evaluations 7 --save
    flowturbo_trt sample bundle --schedule table:lms7 --labels 0-9 --out grid.png
    """
    if out is not None:
        check_outputs([out], None)
    if not console.shows_tracebacks:
        # What ONNX Runtime would print is raised as an error as well. The process is ours to silence.
        onnxruntime.set_default_logger_severity(4)
    options = FitOptions(seconds=60 * minutes, seed=seed, **given)
    name = name or f"lms{options.evaluations}" + (f"r{options.refined}" if options.refined else "")
    bundle = Bundle.open(path)
    # What `table:NAME` would be is known beforehand, and so is what stands against it.
    with contextlib.closing(
        Pipeline.load(path, backend=backend, device=device, threads=threads, provider=provider)
    ) as pipeline:
        manifest = pipeline.manifest
        judged = beside or (manifest.default_schedule, f"AB2x{options.evaluations}")
        schedules = [manifest.schedule(text) for text in dict.fromkeys(judged)]
        with console.progress() as progress:
            sets: list[Endpoints] = []
            for count in (trajectories, held_out):
                request = make_rows(manifest, count, seed + sum(map(len, sets)), guidance)
                sets.append(find_endpoints(pipeline, request, reference, progress))
            networks = load_torch_networks(bundle, TorchOptions(device=device or "cpu", threads=threads))
            fit = fit_table(networks, name, *sets, options, progress)
        errors = {
            str(schedule): float(endpoint_errors(pipeline, sets[1], schedule).mean())
            for schedule in (Schedule.of_table(fit.table), *schedules)
        }
    document = {"command": NAME, "bundle": str(path), "reference": reference, **fit.describe()}
    document |= {"endpoint_errors": errors, "trajectories": trajectories, "held_out": held_out}
    if out is not None:
        text = json.dumps({"version": JSON_VERSION, **document}, indent=1, ensure_ascii=False)
        out.write_text(f"{text}\n", encoding="utf-8")
    if save or as_default:
        rewrite_manifest(bundle, with_schedule(manifest, Schedule.of_table(fit.table), default=as_default))
    console.result(document, "\n".join(lines(fit, errors)))


def lines(fit: Fit, errors: dict[str, float]) -> list[str]:
    """Lay the fit out for people."""
    width = max(map(len, errors))
    rows = [f"{text:<{width}}  {error:.4f}" for text, error in errors.items()]
    steps = fit.looks[-1].step
    return [
        f"fitted in {steps} steps, {fit.seconds:.0f} s, from Adams–Bashforth of order {fit.order}",
        "distance from the true endpoint, relative, mean of held-out noises:",
        *rows,
    ]
