"""Where an engine goes wrong: the first node whose output leaves the float32 graph's.

Both graphs run on ONNX Runtime's CPU, through Polygraphy, with their inner tensors as outputs. Rewritten
engines keep the names of the tensors they inherit (export/precision.py); what has no counterpart in the
graph, a cast say, is passed over.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Engine, Graph
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.parity.comparison import row_relative_l2
from flowturbo_trt.evaluation.parity.recording import Inputs, Recording
from flowturbo_trt.evaluation.parity.results import EngineParity
from flowturbo_trt.evaluation.parity.thresholds import file_thresholds
from flowturbo_trt.sampling.errors import FlowTurboError

# Tensors marked as outputs at once: those of a full-size network would not fit into memory together.
CHUNK = 64


class BisectError(FlowTurboError):
    """Bisecting needs a package that is not installed, or met a graph it cannot run."""


@dataclass(frozen=True)
class Divergence:
    """The first node outside the limit: its output's relative L2, and the weights it reads."""

    op_type: str
    node: str
    tensor: str
    weights: tuple[str, ...]
    relative_l2: float
    limit: float


@dataclass(frozen=True)
class Bisection:
    """What was found in one engine; without a divergence `note` says why."""

    engine: Engine
    divergence: Divergence | None
    note: str


def require_tools() -> None:
    """Raise BisectError unless the packages of the `verify` extra are installed."""
    for module in ("onnx", "polygraphy"):
        if importlib.util.find_spec(module) is None:
            raise BisectError(f"--bisect needs {module}; pip install 'flowturbo_trt[verify]'")


def bisect(bundle: Bundle, result: EngineParity, recordings: Sequence[Recording]) -> Bisection:
    """Find the first node of a failed engine that differs, on the row of its worst call.

    The limit is that of a call in the precision of the engine's file.
    """
    engine = result.engine
    candidates = _worst_inputs(result, recordings)
    if not candidates:
        return Bisection(engine, None, "it gave no output to look into")
    if not engine.file.endswith(".onnx"):
        return Bisection(
            engine,
            None,
            f"the layers of {engine.file} cannot be read; build the bundle for onnxruntime in "
            f"{engine.precision} as well and bisect that engine",
        )
    (graph,) = (
        graph
        for graph in bundle.manifest.graphs
        if (graph.network, graph.variant) == (engine.network, engine.variant)
    )
    if engine.file == graph.file:
        return Bisection(
            engine,
            None,
            f"it is the float32 graph itself: the difference arises in how {engine.backend} computes it in "
            f"{engine.precision}",
        )
    limit = file_thresholds(engine, result.limits).call_relative_l2
    try:
        expected, found = _Tensors(bundle, graph), _Tensors(bundle, engine)
        searches = (_first_divergence(expected, found, inputs, limit) for inputs in candidates)
        divergence = next(filter(None, searches), None)
    except FlowTurboError as error:
        return Bisection(engine, None, str(error))
    note = f"every tensor that both graphs have is within {limit:.2g}: the difference arises between them"
    return Bisection(engine, divergence, "" if divergence else note)


def _worst_inputs(result: EngineParity, recordings: Sequence[Recording]) -> list[Inputs]:
    """Return the one row of inputs on which an engine was worst; none if it gave no figures.

    Of a conditioner there are two: it is called for the label and for none.
    """
    worst = result.worst_image if result.worst_call is None else result.worst_call
    if worst is None:
        return []
    (recording,) = (r for r in recordings if (r.schedule, r.variant) == (worst.schedule, worst.variant))
    row = slice(worst.row, worst.row + 1)
    if result.worst_call is None:
        return [{"state": recording.latents[row]}]
    calls = recording.calls_of(result.engine.network, result.engine.variant)
    worst_calls = (call for call in calls if call.index == result.worst_call.call)
    return [{name: array[row] for name, array in call.inputs.items()} for call in worst_calls]


def _first_divergence(
    expected: "_Tensors", found: "_Tensors", inputs: Inputs, limit: float
) -> Divergence | None:
    known = set(expected.names())
    shared = [name for name in found.names() if name in known]
    for start in range(0, len(shared), CHUNK):
        names = shared[start : start + CHUNK]
        wanted, given = expected.compute(names, inputs), found.compute(names, inputs)
        for name in names:
            if given[name].dtype.kind != "f":
                continue
            error = _relative_l2(given.pop(name), wanted.pop(name))
            # Written so that NaN counts.
            if not error <= limit:
                node = found.producer(name)
                return Divergence(node.op_type, node.name, name, found.weights(node), error, limit)
    return None


def _relative_l2(found: NDArray[Any], expected: NDArray[Any]) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float(row_relative_l2(found.reshape(1, -1), expected.reshape(1, -1))[0])


class _Tensors:
    """An ONNX file whose inner tensors can be computed."""

    def __init__(self, bundle: Bundle, described: Graph | Engine) -> None:
        import onnx

        for file in described.data:
            bundle.file(file)
        self._path = bundle.file(described.file)
        self._model: Any = onnx.load(self._path, load_external_data=False)
        self._initializers = {tensor.name for tensor in self._model.graph.initializer}
        self._producers = {name: node for node in self._model.graph.node for name in node.output}
        self._producers.pop("", None)

    def names(self) -> Iterator[str]:
        """Yield the tensors that nodes compute, in the order of the file, which is topological."""
        yield from self._producers

    def producer(self, name: str) -> Any:
        return self._producers[name]

    def weights(self, node: Any) -> tuple[str, ...]:
        return tuple(name for name in node.input if name in self._initializers)

    def compute(self, names: Sequence[str], inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Run the graph with the given tensors as its only outputs."""
        from polygraphy.backend.onnxrt import OnnxrtRunner
        from polygraphy.logger import G_LOGGER

        with G_LOGGER.verbosity(G_LOGGER.ERROR):
            try:
                with OnnxrtRunner(self._session(names)) as runner:
                    return dict(runner.infer(self._rows(inputs), check_inputs=False))
            except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
                reason = " ".join(str(error).split())[:300]
                raise BisectError(f"{self._path}: cannot be run with its inner tensors ({reason})") from error

    def _session(self, names: Sequence[str]) -> onnxruntime.InferenceSession:
        from onnx import ValueInfoProto

        del self._model.graph.output[:]
        self._model.graph.output.extend(ValueInfoProto(name=name) for name in names)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        # Of 8-bit engines all that Q and DQ say, no products fused from them: those have other tensors.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        # Of a model given as bytes: where the weights that are not among them lie.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self._path.parent)
        )
        return onnxruntime.InferenceSession(
            self._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def _rows(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Repeat the one row as often as a graph of a fixed batch wants it."""
        (batch,) = {
            max(1, tensor.type.tensor_type.shape.dim[0].dim_value) for tensor in self._model.graph.input
        }
        return {name: np.repeat(array, batch, axis=0) for name, array in inputs.items()}
