"""`flowturbo_trt train`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from flowturbo_trt.commands.common import Console, make_command
from flowturbo_trt.commands.files import write_images
from flowturbo_trt.commands.training_options import config_options, training_config
from flowturbo_trt.export.use import default_guidance, guided_channels
from flowturbo_trt.models.catalogue import resolve
from flowturbo_trt.models.checkpoints import (
    Checkpoint,
    given_config,
    load_checkpoint,
    load_predictor,
    load_refiner,
)
from flowturbo_trt.training.config import PRESETS, TrainingConfig, TrainingError
from flowturbo_trt.training.data import check_same_autoencoder, open_source
from flowturbo_trt.training.distributed import DEVICES, Group, joined
from flowturbo_trt.training.previews import Previews
from flowturbo_trt.training.source import LatentSource
from flowturbo_trt.training.train_refiner import train_refiner


@make_command(name="train", short_help="Train a velocity refiner for a predictor.")
@click.option("--predictor", required=True, help="Checkpoint of the predictor, or a public model's name.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Latent cache (a file, or a folder that `encode` wrote), or a folder of images.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder; continued if it has a run."
)
@click.option("--model", help="A published model's shape, e.g. SiT-XL/2.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="JSON file with what checkpoints do not tell."
)
@click.option("--download", is_flag=True, help="Fetch public models that are given by name.")
@click.option(
    "--encoder", type=click.Path(path_type=Path), help="Autoencoder to encode a folder of images with."
)
@click.option("--size", type=click.IntRange(min=1), help="Side in pixels that images are cropped to.")
@click.option("--flip/--no-flip", default=None, help="Mirror half of the images. Default: if the cache can.")
@click.option(
    "--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to train."
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="class-conditional",
    show_default=True,
    help="The paper's hyper-parameters for a kind of model; options that are given win. "
    "Networks that read text cannot be trained yet: text-to-image is its hyper-parameters alone.",
)
@config_options
@click.option(
    "--tensorboard/--no-tensorboard",
    default=True,
    show_default=True,
    help="Write event files to OUT/tensorboard.",
)
@click.option(
    "--preview-every",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Steps between images in OUT/previews; 0 is none.",
)
@click.option("--decoder", type=click.Path(path_type=Path), help="Autoencoder that decodes the previews.")
@click.option(
    "--preview-schedule", default=Previews.schedule, show_default=True, help="Schedule of the previews."
)
def command(console: Console, **options: Any) -> None:
    """Train a velocity refiner; the folder OUT holds its weights (refiner.safetensors) and can be resumed.

    \b
    flowturbo_trt train --predictor sit.pt --data latents --out refiner
    flowturbo_trt train --predictor sit.pt --init refiner.safetensors --on-policy H8P9R5 --out tuned
    torchrun --nproc-per-node 8 --no-python flowturbo_trt train --predictor sit.pt …
    """
    given = given_config(options["model"], options["config"])
    training = training_config(given, options)
    with joined(options["device"], quiet=not console.shows_tracebacks) as group:
        weights, loss = _train(console, training, given, group, options)
    if group.leads:
        console.result(
            {
                "command": "train",
                "weights": str(weights),
                "steps": training.steps,
                "loss": loss,
                "processes": group.size,
            },
            f"{training.steps} steps, {_told(loss)}: {weights}",
        )


def _told(loss: float | None) -> str:
    return "done before" if loss is None else f"last loss {loss:.4f}"


def _train(
    console: Console,
    training: TrainingConfig,
    given: Mapping[str, Any],
    group: Group,
    options: Mapping[str, Any],
) -> tuple[Path, float | None]:
    """Load what is asked for and train; return the weights and the last loss, if a step was taken."""
    last: float | None = None
    with console.progress() as progress:
        names = {"predictor": options["predictor"]}
        if training.init == "refiner":
            names["refiner"] = options["init"]
        checkpoints = _checkpoints(names, options["download"], group, progress)
        predictor = load_predictor(checkpoints["predictor"], given)
        start = None
        if "refiner" in checkpoints:
            start = load_refiner(checkpoints["refiner"], predictor.config, given.get("refiner_heads"))
        previews = _previews(given, options)

        def on_step(step: int, loss: float) -> None:
            nonlocal last
            last = loss
            if step % 10 == 0 or step == training.steps:
                progress(f"loss {loss:.4f}", step, training.steps)

        weights = train_refiner(
            predictor,
            _source(group, options, previews),
            training,
            options["out"],
            on_step,
            {name: checkpoint.sha256 for name, checkpoint in checkpoints.items()},
            start=start,
            guided_channels=guided_channels(given, predictor.config.in_channels),
            group=group,
            tensorboard=options["tensorboard"],
            previews=previews,
        )
    return weights, last


def _checkpoints(
    names: Mapping[str, str], download: bool, group: Group, progress: Callable[[str, int, int], None]
) -> dict[str, Checkpoint]:
    """Load files, or public models by name, fetched by one process; the others find them."""
    if group.leads:
        for name in names.values():
            resolve(name, download, progress)
    group.agree(0)
    return {key: load_checkpoint(resolve(name, download, progress)) for key, name in names.items()}


def _source(group: Group, options: Mapping[str, Any], previews: Previews | None) -> LatentSource | None:
    """Open the data, if any, made with the autoencoder that the previews are decoded with."""
    if options["data"] is None:
        return None
    names = ("encoder", "size", "flip")
    source = open_source(options["data"], **{name: options[name] for name in names}, device=group.device)
    if previews is not None:
        check_same_autoencoder(source, options["decoder"])
    return source


def _previews(given: Mapping[str, Any], options: Mapping[str, Any]) -> Previews | None:
    if options["preview_every"] == 0:
        return None
    if options["decoder"] is None:
        raise TrainingError("--preview-every needs --decoder, the autoencoder that makes images of latents")
    # Imported here because diffusers takes seconds to import, which is for previews alone.
    from flowturbo_trt.models.autoencoder import load_decoder

    decoder, _ = load_decoder(options["decoder"])
    return Previews(
        decoder,
        lambda images, path: write_images(images, path, None),
        options["preview_every"],
        options["preview_schedule"],
        default_guidance(given),
    )
