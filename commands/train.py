"""`flowturbo_trt train`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from flowturbo_trt.commands.common import Console, make_command
from flowturbo_trt.models.catalogue import resolve
from flowturbo_trt.models.checkpoints import (
    file_sha256,
    given_config,
    load_checkpoint,
    load_predictor,
)
from flowturbo_trt.training.data import LatentCache
from flowturbo_trt.training.train_refiner import TrainingConfig, train_refiner

HELP = {
    "steps": "Optimizer steps.",
    "batch": "Latents per step.",
    "learning_rate": "AdamW's learning rate, constant.",
    "weight_decay": "AdamW's weight decay.",
    "ema": "Decay of the moving average of the weights, which is what `build` takes.",
    "max_delta": "Largest time step Δ that the refiner learns to bridge.",
    "label_drop": "Share of samples trained without their label.",
    "depth": "Blocks of the refiner.",
    "precision": "fp32, or bf16 for autocast.",
    "checkpoint_every": "Steps between checkpoints.",
    "seed": "Seed of everything random.",
}


def config_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add one option per field of TrainingConfig, with its default."""
    for field in reversed(dataclasses.fields(TrainingConfig)):
        name = "--" + field.name.replace("_", "-")
        option = click.option(name, default=field.default, show_default=True, help=HELP[field.name])
        function = option(function)
    return function


@make_command(name="train", short_help="Train a velocity refiner for a predictor.")
@click.option("--predictor", required=True, help="Checkpoint of the predictor, or a public model's name.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Latent cache (.safetensors).")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder; continued if it has a run."
)
@click.option("--model", help="A published model's shape, e.g. SiT-XL/2.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="JSON file with what checkpoints do not tell."
)
@click.option("--download", is_flag=True, help="Fetch public models that are given by name.")
@config_options
def command(
    console: Console,
    predictor: str,
    data: Path,
    out: Path,
    model: str | None,
    config: Path | None,
    download: bool,
    **settings: Any,
) -> None:
    """Train a velocity refiner; the folder OUT holds its weights (refiner.safetensors) and can be resumed.

    \b
    flowturbo_trt train --predictor sit.pt --data latents.safetensors --out refiner
    """
    training = TrainingConfig(**settings)
    given = given_config(model, config)
    last: float | None = None
    with console.progress() as progress:
        checkpoint = load_checkpoint(resolve(predictor, download, progress))
        network = load_predictor(checkpoint, given)
        cache = LatentCache.load(data)
        sources = {"predictor": checkpoint.sha256, "data": file_sha256(data)}

        def on_step(step: int, loss: float) -> None:
            nonlocal last
            last = loss
            if step % 10 == 0 or step == training.steps:
                progress(f"loss {loss:.4f}", step, training.steps)

        weights = train_refiner(network, cache, training, out, on_step, sources)
    console.result(
        {"command": "train", "weights": str(weights), "steps": training.steps, "loss": last},
        f"{training.steps} steps, {'done before' if last is None else f'last loss {last:.4f}'}: {weights}",
    )
