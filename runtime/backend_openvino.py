"""Engines on OpenVINO, which runs on the CPU: in bfloat16 where the processor has such arithmetic."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Engine, Tensor
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import BackendError, UnsupportedError
from flowturbo_trt.runtime.host_backend import FileTensors, HostBackend, check_interface

NAME = "openvino"
# As OpenVINO calls them. Others it takes as well, and computes in bf16 or fp32 without a word. What is in
# INT8 the graph says; this is for the rest of it.
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVinoBackend(HostBackend):
    """One compiled model per network variant."""

    def __init__(self, bundle: Bundle, device: str, threads: int) -> None:
        super().__init__(bundle, NAME)
        if device != "cpu":
            raise BackendError(
                f"device {device!r}: OpenVINO is used on the CPU only; use --device cpu, or another backend"
            )
        self._openvino = import_openvino()
        self._core = self._openvino.Core()
        self._threads = threads

    def load(self, described: Engine) -> "OpenVinoEngine":
        for file in described.data:
            self._bundle.file(file)
        path = self._bundle.file(described.file)
        hints = {"INFERENCE_PRECISION_HINT": _precision(described, self._core), **settings(self._threads)}
        try:
            model = self._core.read_model(path)
        except Exception as error:  # its exceptions share no base class of their own
            raise _explain(described, f"cannot read {described.file}", error) from error
        check_interface(described, described.inputs, _tensors(described.inputs, model.inputs))
        check_interface(described, described.outputs, _tensors(described.outputs, model.outputs))
        try:
            _fix_batch(model, described)
            compiled = self._core.compile_model(model, "CPU", hints)
        except Exception as error:  # as above
            raise _explain(described, f"cannot compile {described.file}", error) from error
        return OpenVinoEngine(self._openvino, compiled, described)


class OpenVinoEngine:
    """A compiled model whose calls are bound to arrays (runtime.host_trajectory.HostEngine)."""

    def __init__(self, openvino: ModuleType, compiled: Any, described: Engine) -> None:
        self.described = described
        self._openvino = openvino
        self._compiled = compiled

    def bind(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> Callable[[], None]:
        arrays = {**inputs, **outputs}
        try:
            # Of its own: a request knows one set of arrays.
            request = self._compiled.create_infer_request()
            for name, array in arrays.items():
                request.set_tensor(name, self._openvino.Tensor(array, shared_memory=True))
        except Exception as error:  # as above
            raise _explain(self.described, "cannot be bound", error) from error

        # The arrays are held here as well as by OpenVINO's tensors, which do not promise it.
        def call(_held: Mapping[str, NDArray[Any]] = arrays) -> None:
            try:
                # Without sharing, the outputs would be copied into arrays that nobody asked for.
                request.infer(share_outputs=True)
            except Exception as error:  # as above: out of memory
                raise _explain(self.described, "OpenVINO failed", error) from error

        return call


def import_openvino() -> ModuleType:
    """Return the module; raises BackendError where it is not installed."""
    try:
        import openvino
    except Exception as error:  # without the libraries it is linked to it fails in ways of its own
        raise BackendError(
            f"backend {NAME} is not installed ({error}); pip install 'flowturbo_trt[{NAME}]'"
        ) from error
    module: ModuleType = openvino
    return module


def precisions(core: Any) -> list[str]:
    """Return the precisions that this processor has: bf16 takes AVX-512 BF16 or AMX."""
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [precision for precision in PRECISIONS if precision == "fp32" or precision.upper() in able]


def settings(threads: int) -> dict[str, Any]:
    """Return what models are compiled with: one call at a time, as fast as it can be."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Threads bound to cores gain nothing measurable, and processes bind theirs to the same cores.
        "ENABLE_CPU_PINNING": False,
    }


def _precision(described: Engine, core: Any) -> str:
    """Return OpenVINO's name for an engine's precision: asked for, since by itself it would take bf16."""
    if described.precision not in PRECISIONS:
        raise BackendError(
            f"{described.name}: OpenVINO has no {described.precision} arithmetic on the CPU; rebuild it with "
            f"--precision {NAME}={' or '.join(PRECISIONS)}"
        )
    if described.precision not in precisions(core):
        units = " (AVX-512 BF16 or AMX)" if described.precision == "bf16" else ""
        raise UnsupportedError(
            f"{described.name}: this processor has no {described.precision} arithmetic{units}; rebuild it "
            f"with --precision {NAME}=fp32, or use another machine"
        )
    return PRECISIONS[described.precision]


def _fix_batch(model: Any, described: Engine) -> None:
    """Let the model know its batch size where there is only one.

    Of several, each would take a compiled model and so another copy of the weights; the free axis
    costs 1 to 3 % in SiT-B/4. The rows of conditioners are no batch.
    """
    if len(described.batches) == 1 and not described.is_conditioner:
        (batch,) = described.batches
        model.reshape({tensor.name: [batch, *tensor.shape[1:]] for tensor in described.inputs})


def _tensors(described: tuple[Tensor, ...], ports: list[Any]) -> FileTensors:
    """Return a model's inputs or outputs; those with several names by the manifest's, if it is among them."""
    wanted = {tensor.name for tensor in described}
    return {
        min(port.names & wanted or port.names): (
            port.element_type.to_dtype().name,
            [axis.get_length() if axis.is_static else str(axis) for axis in port.partial_shape],
        )
        for port in ports
    }


def _explain(described: Engine, what: str, error: Exception) -> BackendError:
    # First the places in its own source, then the reason.
    lines = [line for line in str(error).splitlines() if not line.startswith(("Exception from", "Check '"))]
    return BackendError(f"{described.name}: {what}: {' '.join(' '.join(lines).split())[:300]}")
