"""`flowturbo_trt tune`."""

import json
from pathlib import Path
from typing import Any

import click
import onnxruntime

from flowturbo_trt.bundle.amend import check_writable, save_schedule
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.tune.description import choose, describe, lines
from flowturbo_trt.calibration.tune.figure import draw
from flowturbo_trt.calibration.tune.front import Budget
from flowturbo_trt.calibration.tune.options import FidOptions, TuneOptions
from flowturbo_trt.calibration.tune.preparation import Preparation, prepared
from flowturbo_trt.calibration.tune.results import Tuned
from flowturbo_trt.calibration.tune.tuning import tune
from flowturbo_trt.commands.common import CHECK_FAILED, JSON_VERSION, Console, make_command
from flowturbo_trt.commands.diagnose import make_folder
from flowturbo_trt.commands.running import running_options
from flowturbo_trt.evaluation.speed.latency import Stability

NAME = "tune"
DOCUMENT, PICTURE = "tune.json", "tune.png"


@make_command(name=NAME, short_help="Search schedules that meet a budget.")
@click.argument("bundle", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help=f"Folder for {DOCUMENT}, {PICTURE} and the journal, from which a search that ended goes on.",
)
@click.option("--budget-ms", type=float, help="Name the most exact schedule within so many ms an image.")
@click.option("--budget-error", type=float, help="Name the fastest schedule with at most this error.")
@click.option("--save", is_flag=True, help="Make the named schedule its bundle's default.")
@click.option(
    "--also",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Bundles of the same model at other precisions or on other backends, to choose from as well: on "
    "--backend where they have engines for it, and there with --device and --provider.",
)
@click.option(
    "--guidance", type=float, multiple=True, help="Scales to search at, in turn. Default: the bundle's."
)
@click.option(
    "--trajectories",
    type=int,
    default=TuneOptions.trajectories,
    show_default=True,
    help="Noises to search on.",
)
@click.option(
    "--held-out",
    type=int,
    default=TuneOptions.held_out,
    show_default=True,
    help="Further noises, which the search does not see, and by which front and winner are chosen.",
)
@click.option(
    "--reference",
    default=TuneOptions.reference,
    show_default=True,
    help="Schedule whose ends are taken for the true ones.",
)
@click.option(
    "--evaluations",
    type=int,
    help="Most evaluations of the predictor. Default: 12, or 2 more than the schedule it was built with.",
)
@click.option("--refined", type=int, default=TuneOptions.refined, show_default=True, help="Most R steps.")
@click.option(
    "--start", type=int, default=TuneOptions.start, show_default=True, help="Candidates to begin with."
)
@click.option(
    "--rounds", type=int, default=TuneOptions.rounds, show_default=True, help="Times to go on from the best."
)
@click.option(
    "--children", type=int, default=TuneOptions.children, show_default=True, help="New candidates each time."
)
@click.option(
    "--latency-batch", type=int, help="Rows of the calls that are timed. Default: the largest built."
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(0, min_open=True),
    default=Stability.seconds,
    show_default=True,
    help="End each of the two timings after this, stable or not.",
)
@click.option("--seed", type=int, default=TuneOptions.seed, show_default=True, help="Of noises and moves.")
@click.option(
    "--extractor", type=click.Path(path_type=Path), help="Also tell FID, by this extractor's features."
)
@click.option(
    "--images", type=click.Path(path_type=Path), help="What FID is against, as `evaluate` takes it."
)
@click.option(
    "--fid-num", type=int, default=FidOptions.num, show_default=True, help="Images of each schedule for FID."
)
@running_options
def command(
    console: Console,
    bundle: Path,
    out: Path,
    budget_ms: float | None,
    budget_error: float | None,
    save: bool,
    latency_batch: int | None,
    max_seconds: float,
    extractor: Path | None,
    images: Path | None,
    fid_num: int,
    **given: Any,
) -> None:
    """Search the schedules that are the most exact for their time on BUNDLE's engines.

    A search that was interrupted, and one that is asked for another budget, goes on from the journal.

    \b
    flowturbo_trt tune bundle --out tuned
    flowturbo_trt tune bundle --out tuned --budget-ms 40 --save
    """
    budget = Budget(budget_ms, budget_error)
    check_usage(extractor, images, budget, save=save)
    if not console.shows_tracebacks:
        # What ONNX Runtime would print is raised as an error as well. The process is ours to silence.
        onnxruntime.set_default_logger_severity(4)
    options = TuneOptions(
        bundle,
        batch=latency_batch,
        stability=Stability(seconds=max_seconds),
        fid=None if extractor is None or images is None else FidOptions(extractor, images, fid_num),
        **given,
    )
    with prepared(options) as found:
        for engines in found.engines.values() if save else ():
            check_writable(engines.bundle)
        make_folder(out)
        with console.progress() as progress:
            tuned = tune(found, out, progress)
    winner = choose(tuned, budget)
    target = found.engines[winner.candidate.engines].bundle if save and winner is not None else None
    # What was found is told first: a bundle that cannot be written then takes nothing of it away.
    report(console, out, found, tuned, budget, target)
    if target is not None and winner is not None:
        save_schedule(target, winner.candidate.schedule, default=True)
        console.info(f"{winner.name} is the default schedule of {target.path} now.")
    if budget.is_set and winner is None:
        raise click.exceptions.Exit(CHECK_FAILED)


def check_usage(extractor: Path | None, images: Path | None, budget: Budget, *, save: bool) -> None:
    """Refuse options that mean nothing without others."""
    if save and not budget.is_set:
        raise click.UsageError("--save writes what a budget names; give --budget-ms or --budget-error")
    if (extractor is None) != (images is None):
        raise click.UsageError("FID takes both --extractor and --images")


def report(
    console: Console, out: Path, found: Preparation, tuned: Tuned, budget: Budget, target: Bundle | None
) -> None:
    """Write the document and the picture, and tell what was found; `target` is to get the winner."""
    draw(found, tuned, budget, out / PICTURE)
    document = {
        "command": NAME,
        "bundle": str(found.options.bundle),
        **describe(found, tuned, budget),
        "save_to": None if target is None else str(target.path),
    }
    written = json.dumps({"version": JSON_VERSION, **document}, indent=1, ensure_ascii=False)
    (out / DOCUMENT).write_text(f"{written}\n", encoding="utf-8")
    files = [str(out / name) for name in (DOCUMENT, PICTURE)]
    text = [*lines(found, tuned, budget), "", ", ".join(files)]
    console.result({**document, "outputs": files}, "\n".join(text))
