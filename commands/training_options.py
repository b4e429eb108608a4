"""The options of `flowturbo_trt train` that are hyper-parameters, and what they are together."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import click
from click.core import ParameterSource

from flowturbo_trt.export.use import default_guidance
from flowturbo_trt.training.config import PRESETS, TrainingConfig, TrainingError

# What is read with data alone, and what shapes a refiner that is new.
OF_DATA = ("data", "encoder", "size", "flip", "max_delta", "label_drop")
OF_SHAPE = ("depth", "width", "heads")
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
    "init": "random, predictor (embeddings and first blocks are the predictor's), or the file of a refiner "
    "to train further.",
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


def training_config(given: Mapping[str, Any], options: Mapping[str, Any]) -> TrainingConfig:
    """Return what the options and the model's configuration say; raises TrainingError.

    Options are as on the command line or in a configuration file, else the preset's.
    """
    names = [field.name for field in dataclasses.fields(TrainingConfig)]
    values = {name: options[name] for name in names}
    values |= {name: value for name, value in PRESETS[options["preset"]].items() if not _is_given(name)}
    if options["init"] not in ("random", "predictor"):
        _refuse(OF_SHAPE, "a refiner that is trained further has its shape")
        values["init"] = "refiner"
    if options["on_policy"]:
        _refuse(OF_DATA, "of no use with --on-policy, which reads no data")
        if not (_is_given("guidance_low") or _is_given("guidance_high")):
            ends = sorted((1.0, 2 * default_guidance(given) - 1))
            values["guidance_low"], values["guidance_high"] = ends
    elif options["data"] is None:
        raise TrainingError("give --data to learn from, or --on-policy to learn without")
    return TrainingConfig(**values)


def _refuse(names: tuple[str, ...], reason: str) -> None:
    if given := [f"--{name.replace('_', '-')}" for name in names if _is_given(name)]:
        raise TrainingError(f"{', '.join(given)}: {reason}; leave it out")


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT
