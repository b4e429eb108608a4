"""Wheel build hook: flowturbo_trt.py becomes the package's __init__.py."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RootModuleHook(BuildHookInterface[Any]):
    """Put the root module where the installed package expects it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # An editable install finds flowturbo_trt.py in the tree: a copy in site-packages would shadow it.
        if version == "standard":
            # The wheel's `sources` puts flowturbo_trt/ in front of this path as of every other.
            build_data["force_include"]["flowturbo_trt.py"] = "__init__.py"
