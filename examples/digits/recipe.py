"""Train the digits model from nothing: `make digits`, about an hour on two cores.

A stage whose output exists is skipped; an interrupted training of predictor or refiner is resumed.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
from safetensors.torch import load_file, save_file

from . import autoencoder, classifier, encode, train_predictor
from .loop import WEIGHTS

ROOT = Path(__file__).parents[2]
REFINER_FILE = WEIGHTS / "refiner.safetensors"
# A larger batch and rate than the paper's: this refiner has minutes, not hours.
REFINER = {"--steps": 3000, "--batch": 128, "--learning-rate": 5e-4, "--ema": 0.999, "--seed": 5}


@dataclass(frozen=True)
class Stage:
    """A step of the recipe: done when `output` exists and the `unfinished` checkpoint or folder does not."""

    name: str
    output: Path
    run: Callable[[], None]
    unfinished: Path | None = None

    @property
    def done(self) -> bool:
        return self.output.exists() and not (self.unfinished and self.unfinished.exists())

    def forget(self) -> None:
        """Remove the output and the checkpoint."""
        for path in (self.output, self.unfinished):
            if path and path.is_dir():
                shutil.rmtree(path)
            elif path:
                path.unlink(missing_ok=True)


def stages(work: Path) -> list[Stage]:
    """Return the stages in order; the latent cache and the checkpoints go to `work`."""
    cache, checkpoint, run = work / "latents.safetensors", work / "predictor.pt", work / "refiner"
    return [
        Stage("classifier", classifier.WEIGHTS_FILE, classifier.train_classifier),
        Stage("autoencoder", autoencoder.DIRECTORY, autoencoder.train_autoencoder),
        Stage("encode", cache, lambda: encode.encode_generator_split(cache)),
        Stage(
            "predictor",
            train_predictor.WEIGHTS_FILE,
            lambda: train_predictor.train_predictor(cache, checkpoint),
            unfinished=checkpoint,
        ),
        Stage("refiner", REFINER_FILE, lambda: train_refiner(cache, run), unfinished=run),
    ]


def train_refiner(cache: Path, folder: Path) -> None:
    """Train the velocity refiner with the command users have, and keep its averaged weights in float16."""
    options = {
        "--predictor": train_predictor.WEIGHTS_FILE,
        "--config": train_predictor.CONFIG_FILE,
        "--data": cache,
        "--out": folder,
        **REFINER,
    }
    words = [str(word) for option in options.items() for word in option]
    subprocess.run([sys.executable, ROOT / "flowturbo_trt.py", "train", *words], check=True)
    weights = load_file(folder / "refiner.safetensors")
    save_file({name: value.half().contiguous() for name, value in weights.items()}, REFINER_FILE)
    shutil.rmtree(folder)


@click.command()
@click.option("--force", is_flag=True, help="Run every stage again, also where its output exists.")
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=ROOT / "out" / "training",
    help="Folder for the latent cache and checkpoints.",
)
def main(force: bool, work: Path) -> None:
    """Train the classifier, autoencoder, predictor and refiner of the digits model."""
    work = work.resolve()
    for folder in (work, WEIGHTS):
        folder.mkdir(parents=True, exist_ok=True)
    for stage in stages(work):
        if force:
            stage.forget()
        if stage.done:
            click.echo(f"{stage.name}: {stage.output} exists, skipped", err=True)
            continue
        started = time.perf_counter()
        stage.run()
        click.echo(f"{stage.name}: done in {time.perf_counter() - started:.0f} s", err=True)


if __name__ == "__main__":
    main()
