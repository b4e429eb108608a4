"""The operations of a network, counted by running it on torch's meta device: shapes without numbers.

Counted are matrix products, convolutions and attention, with 1 multiply-add = 2 FLOP, as torch counts
them. Not counted are elementwise work, normalisation, softmax and embedding lookups. Weights are those of
the counted operations, biases included.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from flowturbo_trt.export.networks import is_conditioning


@dataclass(frozen=True)
class Operation:
    """A matrix product, convolution or attention; `weights` and `activations` are values read and written.

    `conditioning`: it works on time and label alone.
    """

    flop: int
    weights: int
    activations: int
    conditioning: bool


@dataclass(frozen=True)
class Cost:
    """Operations in their order."""

    operations: tuple[Operation, ...]

    @property
    def flop(self) -> int:
        return sum(operation.flop for operation in self.operations)

    @property
    def weights(self) -> int:
        """Values of weights read; what is read in several calls counts in each."""
        return sum(operation.weights for operation in self.operations)

    def weight_bytes(self, itemsize: int) -> int:
        """Return the bytes of weights read, `itemsize` a value: 2 for fp16 and bf16."""
        return self.weights * itemsize

    @property
    def conditioning(self) -> "Cost":
        """The share of what depends on time and label alone."""
        return Cost(tuple(operation for operation in self.operations if operation.conditioning))


def roofline(cost: Cost, tflops: float, gigabytes_per_second: float, itemsize: int = 2) -> float:
    """Return the seconds that the operations take one after the other at a machine's limits.

    Each takes the longer of its arithmetic at `tflops` (10¹² FLOP/s) and of moving its weights, inputs and
    outputs through memory once at `gigabytes_per_second` (10⁹ bytes/s); attention's scores stay on the
    chip. Not in it: all that is not counted (see the module), launches, copies from and to the host; nor
    what caches keep from one operation for the next, so that it is an estimate and no strict bound.
    """
    arithmetic, transfer = 1 / (tflops * 1e12), itemsize / (gigabytes_per_second * 1e9)
    return sum(max(o.flop * arithmetic, (o.weights + o.activations) * transfer) for o in cost.operations)


def count_operations(module: nn.Module, sizes: Mapping[str, tuple[int, ...]]) -> Cost:
    """Run a module on the meta device, on those of the inputs that it takes."""
    inputs = {
        name: torch.empty(sizes[name], dtype=torch.int64 if name == "label" else torch.float32, device="meta")
        for name in inspect.signature(module.forward).parameters
        if name in sizes
    }
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _Recorder(module, counter) as recorder:
        module(**inputs)
    return Cost(tuple(recorder.operations))


class _Recorder(TorchFunctionMode):
    """Lists the functions that torch's counter counts something in; attention is one of them."""

    def __init__(self, module: nn.Module, counter: FlopCounterMode) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._counter = counter
        named = ((name.removeprefix("network."), p) for name, p in module.named_parameters())
        self._conditioning = {id(parameter) for name, parameter in named if is_conditioning(name)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        before = self._counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        if flop := self._counter.get_total_flops() - before:
            tensors = [t for t in (*args, *(kwargs or {}).values(), result) if isinstance(t, Tensor)]
            weights = [t for t in tensors if isinstance(t, nn.Parameter)]
            read = sum(t.numel() for t in weights)
            activations = sum(t.numel() for t in tensors) - read
            conditioning = any(id(t) in self._conditioning for t in weights)
            self.operations.append(Operation(flop, read, activations, conditioning))
        return result
