"""`flowturbo_trt calibrate precision`."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import onnxruntime

from flowturbo_trt.bundle.environment import versions
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.precision.gate_speed import LEAST_SAMPLES
from flowturbo_trt.calibration.precision.heat_map import save_heat_map
from flowturbo_trt.calibration.precision.options import (
    RECOGNISED_ROWS,
    ROWS,
    GateOptions,
    PrecisionOptions,
)
from flowturbo_trt.calibration.precision.quantize import Calibrated, calibrate_precision
from flowturbo_trt.calibration.precision.ranges import METHODS
from flowturbo_trt.commands.common import CHECK_FAILED, JSON_VERSION, Console, make_command
from flowturbo_trt.commands.files import FileError, check_outputs
from flowturbo_trt.commands.precision_text import conclusion, lines, title
from flowturbo_trt.commands.running import threads_option
from flowturbo_trt.evaluation.quality.extractor import open_extractor
from flowturbo_trt.evaluation.report import machine
from flowturbo_trt.evaluation.speed.latency import Stability
from flowturbo_trt.export.quantization import KINDS, save_recipe
from flowturbo_trt.sampling.noise import MAX_SEED

NAME = "calibrate precision"
NO_SMOOTHING = "none"


class Strength(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A strength of smoothing from 0 to 1, or `none`."""

    name = f"0…1|{NO_SMOOTHING}"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str | None:
        if value is None or value == NO_SMOOTHING:
            return NO_SMOOTHING
        try:
            strength = float(value)
        except ValueError:
            strength = -1.0
        if not 0 <= strength <= 1:
            self.fail(f"{value!r} is neither {NO_SMOOTHING} nor a number from 0 to 1", param, ctx)
        return strength


@make_command(name="precision", short_help="Find out which layers may run in 8 bits, and prove it.")
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice(list(KINDS)), required=True, help="Numbers of 8 bits.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The recipe, for `build --recipe`."
)
@click.option(
    "--schedule", "schedules", multiple=True, help="Default: the bundle's default; repeatable, as below."
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=PrecisionOptions.rows,
    show_default=True,
    help="Trajectories to record, that ranges are chosen on.",
)
@click.option(
    "--trial-rows",
    type=click.IntRange(min=1),
    default=PrecisionOptions.trial_rows,
    show_default=True,
    help="How many of them sensitivity and the choice of layers are measured on.",
)
@click.option(
    "--judged-rows",
    type=click.IntRange(min=1),
    help="Images of other noise that the gate compares. "
    f"Default: {ROWS}, with --extractor {RECOGNISED_ROWS}.",
)
@click.option(
    "--guidance", type=float, multiple=True, help="Scales to record at, in turn. Default: the bundle's."
)
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=PrecisionOptions.seed,
    show_default=True,
    help="Of the noise.",
)
@click.option(
    "--recording",
    type=click.Path(path_type=Path),
    help="Folder of recorded trajectories: read if there is one, else written. Default: a temporary one.",
)
@click.option(
    "--method",
    "methods",
    type=click.Choice(list(METHODS)),
    multiple=True,
    help="How ranges are chosen. Default: each is tried, and what measures best is taken.",
)
@click.option(
    "--smoothing",
    type=Strength(),
    multiple=True,
    help="How far outliers move from activations into weights. Default: 0.5 and none are tried.",
)
@click.option(
    "--budget-error",
    type=click.FloatRange(0, min_open=True),
    help="How far latents may move on average: relative L2 against float32 with the same schedule and noise. "
    f"Default: {PrecisionOptions.budget_share:g} of how far the schedule itself ends from --reference.",
)
@click.option(
    "--reference",
    default=PrecisionOptions.reference,
    show_default=True,
    help="The fine schedule that the default budget is measured against.",
)
@click.option(
    "--layers",
    multiple=True,
    default=PrecisionOptions.layers,
    show_default=True,
    help="Kinds of linear layers that may run in 8 bits.",
)
@click.option(
    "--networks",
    multiple=True,
    default=PrecisionOptions.networks,
    show_default=True,
    help="Networks whose layers these are: predictor, refiner.",
)
@click.option(
    "--extractor",
    type=click.Path(path_type=Path),
    help="Feature extractor, as for `evaluate`: class agreement may not fall by more than a point, where it "
    "tells the bundle's classes.",
)
@click.option(
    "--figure", type=click.Path(path_type=Path), help="Heat map of errors, .png; numbers go beside it."
)
@click.option("--report", type=click.Path(path_type=Path), help="JSON file for everything that was measured.")
@click.option(
    "--max-seconds",
    type=click.FloatRange(0, min_open=True),
    default=GateOptions().stability.seconds,
    show_default=True,
    help="Stop timing after this, stable or not, for each schedule and batch size; "
    f"not before {LEAST_SAMPLES} samples.",
)
@threads_option
def command(
    console: Console,
    path: Path,
    out: Path,
    recording: Path | None,
    extractor: Path | None,
    figure: Path | None,
    report: Path | None,
    judged_rows: int | None,
    max_seconds: float,
    threads: int,
    **given: Any,
) -> None:
    """Find out which layers of BUNDLE's networks may run in 8 bits, and prove it.

    Layers stay in 8 bits while the error is within the budget. The recipe is for `build --recipe`; where a
    check does not hold, exit status is 3, and `build` refuses it without --force.

    \b
    flowturbo_trt calibrate precision bundle --kind int8 --out recipe.json --figure heat.png
    """
    check_files(out, figure, report)
    if not console.shows_tracebacks:
        # What ONNX Runtime would print is raised as an error as well. The process is ours to silence.
        onnxruntime.set_default_logger_severity(4)
    gate = GateOptions(judged_rows, stability=Stability(seconds=max_seconds), threads=threads)
    options = make_options(given, gate)
    bundle = Bundle.open(path)
    opened = None if extractor is None else open_extractor(extractor, threads=threads)
    with tempfile.TemporaryDirectory() as place, console.progress() as progress:
        found = calibrate_precision(bundle, options, recording or Path(place), opened, progress)
    document = {
        "command": NAME,
        "bundle": str(path),
        "recipe": str(out),
        "passed": found.gate.passed,
        **found.describe(),
        "machine": machine(),
        "versions": versions(),
    }
    write_files(found, document, out, figure, report)
    console.result(document, "\n".join([*lines(found), conclusion(found, out)]))
    if not found.gate.passed:
        raise click.exceptions.Exit(CHECK_FAILED)


def check_files(out: Path, figure: Path | None, report: Path | None) -> None:
    """Refuse outputs that cannot be written, before any work."""
    files = [out]
    if figure is not None:
        if figure.suffix != ".png":
            raise click.UsageError(f"--figure {figure}: expected a name ending in .png")
        files += [figure, figure.with_suffix(".json")]
    check_outputs([*files, *([report] if report else [])], None)


def write_files(
    found: Calibrated, document: dict[str, Any], out: Path, figure: Path | None, report: Path | None
) -> None:
    """Write what was asked for, the recipe first; raises FileError."""
    put_back = [group.name for group in found.choice.put_back]
    with writing(out):
        save_recipe(found.recipe, out)
    if figure is not None:
        with writing(figure):
            save_heat_map(found.sensitivity, put_back, title(found), figure)
    if report is not None:
        text = json.dumps(
            {"version": JSON_VERSION, **document}, indent=1, ensure_ascii=False, allow_nan=False
        )
        with writing(report):
            report.write_text(f"{text}\n", encoding="utf-8")


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Raise a FileError for what writing a file fails on, after all the work."""
    try:
        yield
    except OSError as error:
        raise FileError(
            f"{file}: cannot be written ({error.strerror}); make room, and calibrate again: with --recording "
            "trajectories are not recorded anew"
        ) from error


def make_options(given: dict[str, Any], gate: GateOptions) -> PrecisionOptions:
    """Make options of what was given; nothing given for methods and smoothing stands for all."""
    options = PrecisionOptions(
        **{name: value for name, value in given.items() if name not in ("methods", "smoothing")}, gate=gate
    )
    if given["methods"]:
        options = replace(options, methods=tuple(dict.fromkeys(given["methods"])))
    if given["smoothing"]:
        strengths = dict.fromkeys(None if s == NO_SMOOTHING else s for s in given["smoothing"])
        options = replace(options, smoothing=tuple(strengths))
    return options
