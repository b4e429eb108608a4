"""What a TensorRT plan's products read, from what the builder says: it takes no GPU to know."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from flowturbo_trt.export.compile import EngineRequest
from flowturbo_trt.export.compile_tensorrt import compile_plan

# A layer in the builder's list of them, of which products have weights: a constant of two axes.
_LAYER = re.compile(r"^Name: .*?, LayerType: \w+, Inputs: (.*?), Constants: (.*?), Outputs: ", re.MULTILINE)
_TENSOR = re.compile(r"Dimensions: \[([\d,]+)\].*?Datatype: (\w+)")


class _Listening(ModuleType):
    """A TensorRT module whose builders tell everything to `words`."""

    def __init__(self, trt: ModuleType, words: list[str]) -> None:
        super().__init__(trt.__name__)
        self.__dict__.update(vars(trt))

        class Listener(trt.ILogger):  # type: ignore[name-defined, misc]  # the base comes from an argument
            def log(self, severity: Any, message: str) -> None:
                words.append(message)

        self._listener = Listener()
        self.Builder = lambda log: trt.Builder(self._listener)


def plan_products(trt: ModuleType, request: EngineRequest, folder: Path) -> tuple[int, dict[str, int]]:
    """Build a plan in `folder`; return its bytes and how many products with weights read each type.

    A type is the activation's and the weight's: `Int8 × Int8`. The request has one batch size: of several,
    each would count.
    """
    words: list[str] = []
    (plan,) = compile_plan(_Listening(trt, words), "tensorrt-rtx", (), request, folder)
    size = plan.stat().st_size
    plan.unlink()
    return size, dict(Counter(_products("\n".join(words))))


def _products(text: str) -> Iterator[str]:
    for inputs, constants in _LAYER.findall(text):
        weights = [
            dtype
            for axes, dtype in _TENSOR.findall(constants)
            if len(sizes := axes.split(",")) == 2 and "1" not in sizes
        ]
        if weights and (read := _TENSOR.search(inputs)):
            yield f"{read[2]} × {weights[0]}"
