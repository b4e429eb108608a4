"""Build the digits bundle, draw a grid with it and compare schedules: `make demo`."""

import importlib.util
from functools import partial
from pathlib import Path

import click
import numpy as np
from PIL import Image

from flowturbo_trt.commands.common import Console, reported
from flowturbo_trt.commands.files import grid
from flowturbo_trt.evaluation.speed.latency import interleaved_medians
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.schedule import Schedule

from .bundle import BATCHES, GUIDANCE, build_digits
from .classifier import load_classifier

SCHEDULES = ("H1P5R3", "H1P5", "H8", "H25")
BASELINES = ("H8", "H25")
REPEATS = 5


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out"), help="Where bundle and picture go."
)
def main(out: Path) -> None:
    """Build the digits bundle, sample a 10×10 grid and print what each schedule costs and gives."""
    console = Console(as_json=False, verbosity=0)
    with reported(console):
        demonstrate(out, console)


def demonstrate(out: Path, console: Console) -> None:
    out.mkdir(parents=True, exist_ok=True)
    backends = ["onnxruntime"]
    if importlib.util.find_spec("tensorrt_rtx"):
        backends.append("tensorrt-rtx")
    else:
        click.echo("tensorrt_rtx is not installed: building for ONNX Runtime only", err=True)
    with console.progress() as progress:
        bundle = build_digits(out / "digits", progress, backends=tuple(backends))
    for engine in bundle.manifest.engines:
        size = sum(bundle.manifest.files[file].bytes for file in engine.files)
        name = engine.name
        click.echo(f"{engine.backend:12} {engine.precision}  {name:18} {size / 1e6:5.1f} MB")
    pipeline = Pipeline.load(out / "digits")
    labels = np.repeat(np.arange(10), 10)
    images = {s: pipeline(labels, guidance=GUIDANCE, schedule=s) for s in SCHEDULES}
    picture = out / "digits.png"
    Image.fromarray(grid(images[SCHEDULES[0]], columns=10)).resize((640, 640)).save(picture)
    click.echo(f"\n{table(pipeline, labels, images)}")
    click.echo(f"\n10×10 digits, one row a class, with {SCHEDULES[0]}: {picture}")


def table(pipeline: Pipeline, labels: np.ndarray, images: dict[str, np.ndarray]) -> str:
    """Compare the schedules on the same engines: cost, speed and how many digits are recognised."""
    batch = max(BATCHES)
    mixed = np.arange(batch) % 10
    calls = {s: partial(pipeline, mixed, guidance=GUIDANCE, schedule=s) for s in SCHEDULES}
    seconds = interleaved_medians(calls, REPEATS)
    classifier = load_classifier()
    lines = [
        f"batch {batch}, guidance {GUIDANCE}, ONNX Runtime fp32 on this CPU, median of {REPEATS} runs",
        f"{'schedule':10} {'evaluations':>22} {'ms/image':>9} {'vs H8':>7} {'vs H25':>7} {'recognised':>11}",
    ]
    for text in SCHEDULES:
        counts = Schedule.parse(text).evaluations()
        evaluations = " + ".join(f"{n} {network}" for network, n in counts.items())
        ratios = " ".join(f"{seconds[base] / seconds[text]:6.2f}×" for base in BASELINES)
        share = (classifier.predict(images[text]) == labels).mean()
        lines.append(
            f"{text:10} {evaluations:>22} {1000 * seconds[text] / batch:9.2f} {ratios} {share:>11.0%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
