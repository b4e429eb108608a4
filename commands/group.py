"""The command group: commands are imported when called, so that each starts with what it needs."""

import importlib
from collections.abc import Mapping
from typing import Any

import click

import flowturbo_trt

COMMANDS = {
    "bench": "Measure a bundle's latency, also against torch.",
    "build": "Compile checkpoints into a bundle of engines.",
    "calibrate": "Fit a bundle to a budget.",
    "cpp": "Write a C++ project around a bundle.",
    "diagnose": "Show how steady velocities are, and what a refiner is worth.",
    "doctor": "Say what this machine can build and run, and why not.",
    "encode": "Encode a folder of images into a latent cache to train on.",
    "evaluate": "Judge images (FID and the rest), or compare schedules.",
    "generate": "Generate many images from a bundle, resumable, on many workers.",
    "inspect": "Show what a bundle holds and check every file of it.",
    "sample": "Generate images from a bundle.",
    "train": "Train a velocity refiner for a predictor.",
    "triton": "Write a model repository for Triton around a bundle, or check one.",
    "tune": "Search schedules that meet a budget.",
    "verify": "Hold a bundle's engines against its float32 graphs.",
}
# The extra that a command's imports come with; the others run with the base install.
EXTRAS = {
    "build": "export",
    "train": "train",
    "encode": "train",
    "evaluate": "evaluate",
    "diagnose": "evaluate",
    "calibrate_precision": "calibrate",
    "calibrate_solver": "calibrate",
    "triton": "serving",
    "tune": "calibrate",
}


class LazyGroup(click.Group):
    """A group of commands by name and summary, each `flowturbo_trt.commands.MODULE:command`.

    MODULE is the name behind `prefix`.
    """

    def __init__(self, *, summaries: Mapping[str, str], prefix: str = "", **settings: Any) -> None:
        super().__init__(**settings)
        self._summaries = summaries
        self._prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._summaries)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self._summaries:
            return None
        module = f"{self._prefix}{name}"
        try:
            imported = importlib.import_module(f"flowturbo_trt.commands.{module}")
        except ModuleNotFoundError as error:
            extra = EXTRAS.get(module)
            if extra is None or str(error.name).startswith("flowturbo_trt"):
                raise
            raise click.ClickException(
                f"`{module.replace('_', ' ')}` needs {error.name}, which the base install leaves out; "
                f"pip install 'flowturbo_trt[{extra}]'"
            ) from error
        command: click.Command = imported.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # The texts are kept here because asking the commands would import them all.
        with formatter.section("Commands"):
            formatter.write_dl(list(self._summaries.items()))


@click.group(cls=LazyGroup, summaries=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(flowturbo_trt.__version__)
def cli() -> None:
    """From flow-matching checkpoints to compiled engines and images."""
