"""What backends have in common whose engines work on arrays in host memory."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Engine, Tensor
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.conditioning import needed_engines
from flowturbo_trt.runtime.host_trajectory import HostEngine, HostTrajectory
from flowturbo_trt.sampling.program import Program


class HostBackend(ABC):
    """One engine per network variant, loaded when first needed (runtime.backend.Backend).

    A subclass says how an engine is loaded; `name` is what the manifest calls the backend.
    """

    device = None

    def __init__(self, bundle: Bundle, name: str) -> None:
        self._bundle = bundle
        self._name = name
        self._engines: dict[tuple[str, str | None], HostEngine] = {}

    @abstractmethod
    def load(self, described: Engine) -> HostEngine:
        """Load an engine from the bundle's files; raises BackendError."""

    def prepare(self, program: Program) -> None:
        for network, variant in needed_engines(self._bundle.manifest, program, self._name):
            self.engine(network, variant)

    def bind(self, program: Program, batch: int) -> HostTrajectory:
        return HostTrajectory(program, batch, self._bundle.manifest, self._name, self.engine)

    def evaluate(self, network: str, variant: str | None, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        (described,) = self._bundle.manifest.engine(network, variant, self._name).outputs
        rows = len(next(iter(inputs.values())))
        output = np.empty((rows, *map(int, described.shape[1:])), dtype=described.dtype)
        # Bound by address: what is sliced out of a larger array has to be whole.
        whole = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        self.engine(network, variant).bind(whole, {described.name: output})()
        return output

    def close(self) -> None:
        self._engines.clear()

    def engine(self, network: str, variant: str | None) -> HostEngine:
        key = (network, variant)
        if key not in self._engines:
            self._engines[key] = self.load(self._bundle.manifest.engine(network, variant, self._name))
        return self._engines[key]


# What a file says of its tensors: dtype and shape by name; of a free axis, anything but a number.
FileTensors = Mapping[str, tuple[str, Sequence[object]]]


def check_interface(engine: Engine, described: tuple[Tensor, ...], found: FileTensors) -> None:
    """Hold a file's inputs or outputs against the manifest's; a free batch axis serves every batch."""
    tensors = dict(found)
    for tensor in described:
        dtype, shape = tensors.pop(tensor.name, ("nothing", ()))
        batch = shape[:1] if shape and isinstance(shape[0], int) else [tensor.shape[0]]
        if (dtype, [*batch, *shape[1:]]) != (tensor.dtype, list(tensor.shape)):
            raise BackendError(
                f"{engine.name}: its {tensor.name} is {dtype} {list(shape)} in {engine.file}, "
                f"{tensor.dtype} {list(tensor.shape)} in the manifest; rebuild it"
            )
    if tensors:
        raise BackendError(
            f"{engine.name}: {engine.file} has {min(tensors)}, which the manifest does not know; rebuild it"
        )
