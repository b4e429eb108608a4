"""The command group: commands are imported when called, so that each starts with what it needs."""

import importlib

import click

import flowturbo_trt

COMMANDS = {
    "bench": "Measure a bundle's latency, also against torch.",
    "build": "Compile checkpoints into a bundle of engines.",
    "diagnose": "Show how steady velocities are, and what a refiner is worth.",
    "doctor": "Say what this machine can build and run, and why not.",
    "encode": "Encode a folder of images into a latent cache to train on.",
    "evaluate": "Judge images (FID and the rest), or compare schedules.",
    "generate": "Generate many images from a bundle, resumable, on many workers.",
    "inspect": "Show what a bundle holds and check every file of it.",
    "sample": "Generate images from a bundle.",
    "train": "Train a velocity refiner for a predictor.",
    "verify": "Hold a bundle's engines against its float32 graphs.",
}
# The extra that a command's imports come with; the others run with the base install.
EXTRAS = {
    "build": "export",
    "train": "train",
    "encode": "train",
    "evaluate": "evaluate",
    "diagnose": "evaluate",
}


class LazyGroup(click.Group):
    """A group whose command NAME is `flowturbo_trt.commands.NAME:command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        try:
            module = importlib.import_module(f"flowturbo_trt.commands.{name}")
        except ModuleNotFoundError as error:
            extra = EXTRAS.get(name)
            if extra is None or str(error.name).startswith("flowturbo_trt"):
                raise
            raise click.ClickException(
                f"`{name}` needs {error.name}, which the base install leaves out; "
                f"pip install 'flowturbo_trt[{extra}]'"
            ) from error
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # The texts are kept here because asking the commands would import them all.
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(flowturbo_trt.__version__)
def cli() -> None:
    """From flow-matching checkpoints to compiled engines and images."""
