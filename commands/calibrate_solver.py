"""`flowturbo_trt calibrate solver`."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import click
import onnxruntime

from flowturbo_trt.bundle.amend import check_writable, save_schedule, with_schedule
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.solver import Solver, SolverOptions, calibrate_solver, template
from flowturbo_trt.calibration.solver_table import FitOptions
from flowturbo_trt.commands.common import JSON_VERSION, Console, make_command
from flowturbo_trt.commands.files import check_outputs
from flowturbo_trt.commands.running import running_options
from flowturbo_trt.evaluation.torch_reference import TorchOptions, load_torch_networks
from flowturbo_trt.runtime.backend import default_backend, default_device
from flowturbo_trt.runtime.pipeline import Pipeline

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
@click.option("--name", default="", help="Of the table, for schedules `table:NAME`. Default: lmsN, lmsNrM.")
@click.option(
    "--guidance", type=float, multiple=True, help="Scales to fit at, in turn. Default: the bundle's."
)
@click.option("--also-at", type=float, multiple=True, help="Scales to judge at that it is not fitted at.")
@click.option(
    "--trajectories",
    type=click.IntRange(min=1),
    default=SolverOptions.trajectories,
    show_default=True,
    help="Noises to fit on.",
)
@click.option(
    "--held-out",
    type=click.IntRange(min=1),
    default=SolverOptions.held_out,
    show_default=True,
    help="Further noises, by which the fit ends and its best table is taken.",
)
@click.option(
    "--judged",
    type=click.IntRange(min=1),
    default=SolverOptions.judged,
    show_default=True,
    help="Further noises, that the errors told are of.",
)
@click.option(
    "--reference",
    default=SolverOptions.reference,
    show_default=True,
    help="Schedule whose ends are taken for the true ones.",
)
@click.option(
    "--beside",
    multiple=True,
    help="Schedules to judge as well. Default: the bundle's default, and AB2xN.",
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
@click.option(
    "--seed", type=int, default=SolverOptions.seed, show_default=True, help="Of noises and of their order."
)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file for table and figures.")
@click.option("--save", is_flag=True, help="Write the table into the bundle.")
@click.option("--default", "as_default", is_flag=True, help="As --save, and make it the default schedule.")
@running_options
def command(
    console: Console,
    path: Path,
    minutes: float,
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
    save = save or as_default
    if out is None and not save:
        raise click.UsageError("nothing would be kept; give --save, --default or --out")
    if out is not None:
        check_outputs([out], None)
    if not console.shows_tracebacks:
        # What ONNX Runtime would print is raised as an error as well. The process is ours to silence.
        onnxruntime.set_default_logger_severity(4)
    options = SolverOptions(**{name: given.pop(name) for name in list(given) if hasattr(SolverOptions, name)})
    fitting = FitOptions(seconds=60 * minutes, seed=options.seed, **given)
    bundle = Bundle.open(path)
    if save:
        check_writable(bundle)
        with_schedule(bundle.manifest, template(options, fitting))
    with (
        contextlib.closing(
            Pipeline.load(path, backend=backend, device=device, threads=threads, provider=provider)
        ) as pipeline,
        console.progress() as progress,
    ):
        # Where the engines run, the fit does too.
        where = device or default_device(backend or default_backend(bundle.manifest), provider)
        networks = load_torch_networks(bundle, TorchOptions(device=where, threads=threads))
        solver = calibrate_solver(pipeline, networks, options, fitting, progress)
    document = {"command": NAME, "bundle": str(path), "reference": options.reference, **solver.describe()}
    if out is not None:
        text = json.dumps({"version": JSON_VERSION, **document}, indent=1, ensure_ascii=False)
        out.write_text(f"{text}\n", encoding="utf-8")
    if save:
        save_schedule(bundle, solver.schedule, default=as_default)
    console.result(document, "\n".join(lines(solver)))


def lines(solver: Solver) -> list[str]:
    """Lay the table's errors out for people."""
    fit = solver.fit
    found = [
        f"{solver.schedule}: fitted in {fit.looks[-1].step} steps, {fit.seconds:.0f} s, "
        f"from Adams–Bashforth of order {fit.order}",
        "distance from the true endpoint, relative, mean of noises that it was not fitted on:",
        *_rows(solver.errors),
    ]
    for scale, errors in solver.errors_at.items():
        found += [f"at guidance {scale:g}, which it was not fitted at:", *_rows(errors)]
    return found


def _rows(errors: Any) -> list[str]:
    width = max(map(len, errors))
    return [f"  {text:<{width}}  {error:.4f}" for text, error in errors.items()]
