"""The options that say what runs a bundle's engines: the same in every command that runs them."""

from collections.abc import Callable
from typing import Any

import click

from flowturbo_trt.runtime.backend import PROVIDERS

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

backend_option: Decorator = click.option(
    "--backend", help="What runs the engines. Default: onnxruntime, or what the bundle has."
)
device_option: Decorator = click.option(
    "--device", help="cpu, cuda or cuda:N. Default: what the backend is made for."
)
provider_option: Decorator = click.option(
    "--provider", type=click.Choice(PROVIDERS), help="What ONNX Runtime runs engines on."
)
threads_option: Decorator = click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="CPU threads. Default: all cores."
)


def running_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `backend`, `device`, `provider` and `threads`, as `load_backend` and `Pipeline.load` take them."""
    return backend_option(device_option(provider_option(threads_option(function))))
