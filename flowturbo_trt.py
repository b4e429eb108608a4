"""Flow-matching checkpoints and their FlowTurbo refiner, compiled to engines and run without torch.

from flowturbo_trt import Pipeline
images = Pipeline.load("bundle")(labels=[207, 360], seeds=[0, 1], guidance=1.5, schedule="H1P5R3")
"""

import importlib as _importlib
import os as _os
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

# One module stands for the whole package, so that the tree, an editable install and the wheel share one
# import name: the folders beside this file are its subpackages.
__path__ = [_os.path.dirname(_os.path.abspath(__file__))]
__package__ = __name__
if __spec__ is not None:
    __spec__.submodule_search_locations = __path__

if _TYPE_CHECKING:
    from flowturbo_trt.bundle.store import Bundle as Bundle
    from flowturbo_trt.runtime.pipeline import Pipeline as Pipeline
    from flowturbo_trt.runtime.pipeline import Step as Step
    from flowturbo_trt.sampling.errors import FlowTurboError as FlowTurboError
    from flowturbo_trt.sampling.schedule import Schedule as Schedule

# Imported when first used: `flowturbo_trt --help` need not start an inference library.
_PUBLIC = {
    "Bundle": "flowturbo_trt.bundle.store",
    "FlowTurboError": "flowturbo_trt.sampling.errors",
    "Pipeline": "flowturbo_trt.runtime.pipeline",
    "Schedule": "flowturbo_trt.sampling.schedule",
    "Step": "flowturbo_trt.runtime.pipeline",
}
__version__ = "0.1.0"
__all__ = ["Bundle", "FlowTurboError", "Pipeline", "Schedule", "Step"]


def __getattr__(name: str) -> _Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_importlib.import_module(_PUBLIC[name]), name)


def main() -> None:
    """Run the command line."""
    from flowturbo_trt.commands.group import cli

    cli(prog_name="flowturbo_trt")


if __name__ == "__main__":
    main()
