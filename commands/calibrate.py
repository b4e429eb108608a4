"""`flowturbo_trt calibrate`: what is fitted to a model and a budget, after it was built."""

import click

from flowturbo_trt.commands.group import LazyGroup

COMMANDS = {
    "precision": "Find out which layers may run in 8 bits, and prove it.",
    "solver": "Learn a solver table for a bundle's model.",
}


@click.group(
    name="calibrate",
    cls=LazyGroup,
    summaries=COMMANDS,
    prefix="calibrate_",
    context_settings={"help_option_names": ["-h", "--help"]},
    short_help="Fit a bundle to a budget.",
)
def command() -> None:
    """Fit a bundle to a budget."""
