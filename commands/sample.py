"""`flowturbo_trt sample`."""

import time
from pathlib import Path

import click
import numpy as np
import onnxruntime

from flowturbo_trt.commands.common import Console, make_command
from flowturbo_trt.commands.files import (
    IntegerList,
    check_outputs,
    count_up,
    load_array,
    save_array,
    save_arrays,
    write_images,
)
from flowturbo_trt.commands.running import running_options
from flowturbo_trt.runtime.pipeline import Generated, Pipeline, Step
from flowturbo_trt.runtime.request import Request, make_request
from flowturbo_trt.sampling.schedule import Schedule


@make_command(name="sample", short_help="Generate images from a bundle.")
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--labels", type=IntegerList(), required=True, help="One class label per image.")
@click.option("--seeds", type=IntegerList(), help="One seed per image; a single one counts up. Default: 0.")
@click.option("--noise", type=click.Path(path_type=Path), help="Noise (N,C,H,W) as .npy instead of seeds.")
@click.option("--guidance", type=float, help="Guidance scale; 1 is none. Default: the bundle's.")
@click.option("--schedule", help="E.g. H1P5R3, H8, AB2x8. Default: the bundle's.")
@click.option("--out", type=click.Path(path_type=Path), help="Images: a grid as .png, or (N,H,W,3) as .npy.")
@click.option("--columns", type=click.IntRange(min=1), help="Columns of the grid. Default: a square.")
@click.option("--output-latents", type=click.Path(path_type=Path), help="Latents (N,C,H,W) as .npy.")
@click.option("--trajectory", type=click.Path(path_type=Path), help="States and velocities per step as .npz.")
@running_options
def command(
    console: Console,
    path: Path,
    labels: list[int],
    seeds: list[int] | None,
    noise: Path | None,
    guidance: float | None,
    schedule: str | None,
    out: Path | None,
    columns: int | None,
    output_latents: Path | None,
    trajectory: Path | None,
    backend: str | None,
    device: str | None,
    provider: str | None,
    threads: int,
) -> None:
    """Generate images from BUNDLE, one for each label.

    \b
    flowturbo_trt sample bundle --labels 0-9 --guidance 1.5 --schedule H1P5R3 --out grid.png
    """
    outputs = [file for file in (out, output_latents, trajectory) if file is not None]
    check_outputs(outputs, out)
    if not console.shows_tracebacks:
        # What ONNX Runtime would print is raised as an error as well. The process is ours to silence.
        onnxruntime.set_default_logger_severity(4)
    pipeline = Pipeline.load(path, backend=backend, device=device, threads=threads, provider=provider)
    chosen = pipeline.manifest.schedule(schedule)
    if noise is None:
        seeds = count_up(seeds or [0], len(labels))
    given = None if noise is None else load_array(noise)
    request = make_request(pipeline.manifest.model, {"label": labels}, seeds, guidance, given)
    recorder = Recorder(pipeline, request, chosen) if trajectory else None
    started = time.perf_counter()
    generated = generate(console, pipeline, request, chosen, recorder, decode=out is not None)
    seconds = time.perf_counter() - started
    if out is not None and generated.images is not None:
        write_images(generated.images, out, columns)
    if output_latents is not None:
        save_array(output_latents, generated.latents)
    if trajectory is not None and recorder is not None:
        save_arrays(trajectory, {f"{chosen}_x": recorder.states, f"{chosen}_v": recorder.velocities})
    tell(console, len(labels), chosen, seconds, [str(file) for file in outputs])


def tell(console: Console, images: int, schedule: Schedule, seconds: float, outputs: list[str]) -> None:
    """Print what was made."""
    console.result(
        {
            "command": "sample",
            "images": images,
            "schedule": str(schedule),
            "evaluations": dict(schedule.evaluations()),
            "seconds": seconds,
            "outputs": outputs,
        },
        f"{images} images with {schedule} in {seconds:.2f} s "
        f"({1000 * seconds / images:.1f} ms each): {', '.join(outputs)}",
    )


def generate(
    console: Console,
    pipeline: Pipeline,
    request: Request,
    schedule: Schedule,
    recorder: "Recorder | None",
    *,
    decode: bool,
) -> Generated:
    """Run a request with progress on the console and, if asked for, its trajectory recorded."""
    with console.progress() as progress:

        def on_step(step: Step) -> None:
            if recorder:
                recorder.take(step)
            done = step.rows.start * step.count + (step.rows.stop - step.rows.start) * (step.index + 1)
            progress(f"sampling {schedule}", done, len(request) * step.count)

        return pipeline.generate(request, schedule, decode=decode, on_step=on_step)


class Recorder:
    """Keeps the trajectory of all rows: states (steps+1,N,C,H,W), conditional velocities (steps,N,C,H,W)."""

    def __init__(self, pipeline: Pipeline, request: Request, schedule: Schedule) -> None:
        shape = (len(request), *pipeline.manifest.model.latent)
        count = len(schedule.kinds)
        self.states = np.zeros((count + 1, *shape), dtype=np.float32)
        self.velocities = np.zeros((count, *shape), dtype=np.float32)
        request.fill_noise(slice(0, len(request)), self.states[0])

    def take(self, step: Step) -> None:
        self.states[step.index + 1, step.rows] = step.state
        self.velocities[step.index, step.rows] = step.velocity[:, 0]
