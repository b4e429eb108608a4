"""Train the digits model from nothing: `make digits`, about an hour on two cores.

Run again after an interruption, it skips finished stages and resumes the predictor's or refiner's training.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
from safetensors.torch import load_file, save_file

from . import autoencoder, classifier, encode, extractor, train_predictor
from .loop import WEIGHTS

ROOT = Path(__file__).parents[2]
REFINER_FILE = WEIGHTS / "refiner.safetensors"
# A larger batch and rate than the paper's: this refiner has minutes, not hours. Guided, unlike the paper's:
# benchmarks/digits_refiner.py measures what that is worth.
REFINER = {
    "--steps": 3000,
    "--batch": 128,
    "--learning-rate": 5e-4,
    "--ema": 0.999,
    "--guidance-low": 1.0,
    "--guidance-high": 2.0,
    "--seed": 5,
}


def stages(work: Path) -> dict[str, Callable[[], None]]:
    """Return the stages in order; the latent cache and the checkpoints go to `work`."""
    cache = work / "latents.safetensors"
    return {
        "classifier": classifier.train_classifier,
        "extractor": extractor.export_extractor,
        "autoencoder": autoencoder.train_autoencoder,
        "encode": lambda: encode.encode_generator_split(cache),
        "predictor": lambda: train_predictor.train_predictor(cache, work / "predictor.pt"),
        "refiner": lambda: train_refiner(cache, work / "refiner"),
    }


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


@click.command()
@click.option("--force", is_flag=True, help="Start anew instead of going on with what is done.")
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=ROOT / "out" / "training",
    help="Folder for the latent cache, the checkpoints and the record of finished stages.",
)
def main(force: bool, work: Path) -> None:
    """Train the digits model, replacing the weights of the example stage by stage."""
    work = work.resolve()
    if force:
        shutil.rmtree(work, ignore_errors=True)
    for folder in (work, WEIGHTS):
        folder.mkdir(parents=True, exist_ok=True)
    for name, train in stages(work).items():
        finished = work / f"{name}.finished"
        if finished.exists():
            click.echo(f"{name}: finished before, skipped", err=True)
            continue
        started = time.perf_counter()
        train()
        finished.touch()
        click.echo(f"{name}: {time.perf_counter() - started:.0f} s", err=True)


if __name__ == "__main__":
    main()
