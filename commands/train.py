"""`flowturbo_trt train`."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from flowturbo_trt.commands.common import Console, make_command
from flowturbo_trt.commands.files import write_images
from flowturbo_trt.export.use import default_guidance, guided_channels
from flowturbo_trt.models.catalogue import resolve
from flowturbo_trt.models.checkpoints import given_config, load_checkpoint, load_predictor
from flowturbo_trt.training.config import PRESETS, TrainingConfig, TrainingError
from flowturbo_trt.training.data import check_same_autoencoder, open_source
from flowturbo_trt.training.distributed import DEVICES, Group, joined
from flowturbo_trt.training.previews import Previews
from flowturbo_trt.training.source import LatentSource
from flowturbo_trt.training.train_refiner import train_refiner

HELP = {
    "steps": "Optimizer steps.",
    "batch": "Latents per step, of all processes together.",
    "accumulate": "Parts in which each process takes its share of a batch: less memory, same gradient.",
    "learning_rate": "AdamW's learning rate, constant after the warm-up.",
    "warmup": "Steps in which the learning rate rises from zero.",
    "weight_decay": "AdamW's weight decay.",
    "clip": "Largest norm of a gradient; 0 is no limit.",
    "ema": "Decay of the moving average of the weights, which is what `build` takes.",
    "max_delta": "Largest time step Δ that the refiner learns to bridge.",
    "label_drop": "Share of samples trained without their label.",
    "on_policy": "Schedules, e.g. 'H1P5R3 H8P9R5', on whose own trajectories the refiner learns, without "
    "data; else on points of the data's paths, as in the paper.",
    "guidance_low": "Smallest guidance scale of the velocity to refine.",
    "guidance_high": "Largest guidance scale of it; 1 and 1 are the paper's, unguided. With --on-policy, "
    "if neither is given: from 1 to as far beyond the model's own scale.",
    "depth": "Blocks of the refiner.",
    "width": "Width of the refiner; 0 is the predictor's.",
    "heads": "Attention heads of the refiner; 0 is as many as make them the predictor's size.",
    "init": "random, or predictor: embeddings and first blocks are the predictor's.",
    "precision": "fp32, or bf16 for autocast; the weights are float32 in both.",
    "checkpoint_every": "Steps between checkpoints.",
    "keep": "Checkpoints kept, the newest ones.",
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
    torchrun --nproc-per-node 8 --no-python flowturbo_trt train --predictor sit.pt …
    """
    given = given_config(options["model"], options["config"])
    training = _training_config(given, options)
    _check_data(training, options)
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


def _training_config(given: Mapping[str, Any], options: Mapping[str, Any]) -> TrainingConfig:
    preset = PRESETS[options["preset"]]
    training = TrainingConfig(
        **{f.name: _setting(f.name, preset, options) for f in dataclasses.fields(TrainingConfig)}
    )
    if not training.on_policy or _is_given("guidance_low") or _is_given("guidance_high"):
        return training
    low, high = sorted((1.0, 2 * default_guidance(given) - 1))
    return dataclasses.replace(training, guidance_low=low, guidance_high=high)


def _setting(name: str, preset: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Return an option as given, on the command line or in a configuration file, else the preset's."""
    return options[name] if _is_given(name) else preset.get(name, options[name])


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def _check_data(training: TrainingConfig, options: Mapping[str, Any]) -> None:
    """Refuse options of data where none is read, and its absence where it is."""
    if not training.on_policy:
        if options["data"] is None:
            raise TrainingError("give --data to learn from, or --on-policy to learn without")
        return
    unread = ("data", "encoder", "size", "flip", "max_delta", "label_drop")
    if given := [f"--{name.replace('_', '-')}" for name in unread if _is_given(name)]:
        raise TrainingError(f"{', '.join(given)}: of no use with --on-policy, which reads no data")


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
        if group.leads:
            resolve(options["predictor"], options["download"], progress)
        # Fetched once; the others find it.
        group.agree(0)
        checkpoint = load_checkpoint(resolve(options["predictor"], options["download"], progress))
        predictor = load_predictor(checkpoint, given)
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
            {"predictor": checkpoint.sha256},
            guided_channels=guided_channels(given, predictor.config.in_channels),
            group=group,
            tensorboard=options["tensorboard"],
            previews=previews,
        )
    return weights, last


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
