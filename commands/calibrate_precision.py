"""`flowturbo_trt calibrate precision`."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import onnxruntime

from flowturbo_trt.bundle.environment import versions
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.precision.gate import GateOptions
from flowturbo_trt.calibration.precision.heat_map import save_heat_map
from flowturbo_trt.calibration.precision.mixed_precision import nearest_groups
from flowturbo_trt.calibration.precision.quantize import Calibrated, PrecisionOptions, calibrate_precision
from flowturbo_trt.calibration.precision.ranges import METHODS
from flowturbo_trt.commands.common import CHECK_FAILED, JSON_VERSION, Console, make_command
from flowturbo_trt.commands.files import check_outputs
from flowturbo_trt.commands.running import threads_option
from flowturbo_trt.evaluation.quality.extractor import open_extractor
from flowturbo_trt.evaluation.report import machine
from flowturbo_trt.evaluation.speed.latency import Stability
from flowturbo_trt.export.quantization import KINDS, save_recipe

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
    default=GateOptions.rows,
    show_default=True,
    help="Images of other noise that the gate compares.",
)
@click.option(
    "--guidance", type=float, multiple=True, help="Scales to record at, in turn. Default: the bundle's."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
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
    help="Feature extractor, as for `evaluate`: class agreement may not fall by more than a point.",
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
    help="Stop timing after this, stable or not, for each schedule and batch size.",
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
    judged_rows: int,
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
    save_recipe(found.recipe, out)
    if figure is not None:
        put_back = [group.name for group in found.choice.put_back]
        save_heat_map(found.sensitivity, put_back, title(found), figure)
    if report is not None:
        text = json.dumps({"version": JSON_VERSION, **document}, indent=1, ensure_ascii=False)
        report.write_text(f"{text}\n", encoding="utf-8")
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


def title(found: Calibrated) -> str:
    """Say what a heat map is of."""
    return f"{found.recipe.kind}: error with one group of layers alone in 8 bits"


def lines(found: Calibrated) -> Iterator[str]:
    """Lay out what was found for people."""
    gate, choice = found.gate, found.choice
    count = sum(map(len, found.recipe.layers.values()))
    yield f"{found.recipe.kind}, {count} layers; ranges by {found.arrangement}"
    if choice.put_back:
        yield f"put back to floating point: {', '.join(group.name for group in choice.put_back)}"
    if not choice.met:
        near = nearest_groups(found.sensitivity, found.budgets)
        told = (
            f"{group.name} ({', '.join(f'{s} {e:.4g}' for s, e in found.sensitivity.of(group).items())})"
            for group in near
        )
        yield f"nothing meets the budget; nearest, alone in 8 bits: {', '.join(told)}"
    yield "velocity error by call, on recorded inputs, mean and worst:"
    for call in gate.velocity:
        where = f"{call['schedule']} {call['network']} t = {call['t']:.3f}"
        yield f"  {where}  {call['mean']:.4f}  {call['worst']:.4f}"
    for drift in gate.drifts:
        text = f"{drift.schedule}: latents move by {drift.mean:.4f}, at worst {drift.worst:.4f}"
        if drift.psnr_mean is not None:
            text += f"; images {drift.psnr_mean:.1f} dB, at worst {drift.psnr_worst:.1f} dB"
        yield text
    for agreement in gate.agreements:
        text = f"{agreement.schedule}: Fréchet distance between both {agreement.frechet_distance:.4g}"
        if agreement.float32 is not None:
            text += f"; recognised {agreement.quantized:.1%}, in float32 {agreement.float32:.1%}"
        yield text
    for speed in gate.speeds:
        times = f"{speed.quantized:.1f} ms, in float32 {speed.float32:.1f} ms"
        yield f"{speed.schedule} at batch {speed.batch}: {times}"
    yield f"engines: {gate.quantized_bytes / 1e6:.1f} MB, in float32 {gate.float32_bytes / 1e6:.1f} MB"
    yield from gate.notes
    yield from map(str, gate.checks)


def conclusion(found: Calibrated, out: Path) -> str:
    if found.gate.passed:
        return f"passed: {out}"
    return f"did not pass: {out} is refused by `build` without --force"
