"""Networks whose linear layers go to 8 bits and back by switches, without a new session for every choice.

Beside the operands of a linear layer stand their quantised values, and a switch of the layer chooses. With
all switches off the graph gives what it gave before; what it gives with some of them on is what the same
Q/DQ gives in an engine, to the rounding of float32, on any machine and for every kind.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Graph
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.export.onnx_graph import load_graph
from flowturbo_trt.export.quantization import QuantizedLinear, linear_layers, quantize
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend
from flowturbo_trt.runtime.onnxruntime_session import session_options

SWITCHES = "switches"
# Modulations that are remembered: 8 guided rows of SiT-XL/2 at 40 times.
KNOWN_BYTES = 512 * 2**20
Layers = Mapping[str, Mapping[str, QuantizedLinear]]


class SwitchedNetwork:
    """A float32 graph with a switch for each of `layers`, all off at first.

    It holds the weights of `layers` in both forms: more memory than any engine.
    """

    def __init__(
        self, bundle: Bundle, graph: Graph, layers: Mapping[str, QuantizedLinear], kind: str, threads: int
    ) -> None:
        self.layers = tuple(layers)
        file = bundle.file(graph.file)
        for data in graph.data:
            bundle.file(data)
        model = _with_switches(load_graph(file), layers, kind)
        options = session_options(threads)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(file.parent)
        )
        content = ir.serde.serialize_model(model).SerializeToString()
        del model
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._switches = np.zeros(len(self.layers), dtype=bool)

    def switch(self, quantized: Collection[str]) -> None:
        """Quantise these layers of the network and no others."""
        self._switches = np.array([layer in quantized for layer in self.layers], dtype=bool)

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Evaluate the network on arrays by input name, any number of rows."""
        output: NDArray[Any] = self._session.run(None, {**inputs, SWITCHES: self._switches})[0]
        return output


def _with_switches(model: ir.Model, layers: Mapping[str, QuantizedLinear], kind: str) -> ir.Model:
    graph = model.graph
    nodes = linear_layers(model)
    operands = {layer: [_held(graph, nodes[layer], index) for index in (0, 1)] for layer in layers}
    quantize(model, layers, kind)
    switches = ir.Value(name=SWITCHES, shape=ir.Shape([len(layers)]), type=ir.TensorType(ir.DataType.BOOL))
    graph.inputs.append(switches)
    for number, (layer, plain) in enumerate(operands.items()):
        node = nodes[layer]
        chosen = _constant(graph, f"{layer}.switch", np.int64(number))
        switch = ir.node("Gather", [switches, chosen])
        graph.insert_before(node, switch)
        for index, value in enumerate(plain):
            # Where both are in reach, the one that the switch says: nothing is folded away beforehand.
            choice = ir.node("Where", [switch.outputs[0], node.inputs[index], value])
            graph.insert_before(node, choice)
            node.replace_input_with(index, choice.outputs[0])
    return model


def _held(graph: ir.Graph, node: ir.Node, index: int) -> ir.Value:
    """Return an operand under another name, which stays when the layer is quantised."""
    value = node.inputs[index]
    assert value is not None
    copy = ir.node("Identity", [value])
    graph.insert_before(node, copy)
    return copy.outputs[0]


def _constant(graph: ir.Graph, name: str, number: np.int64) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64))
    value.const_value = ir.tensor(np.asarray(number), name=name)
    graph.register_initializer(value)
    return value


class SwitchedBackend(OnnxRuntimeBackend):
    """The float32 graphs of a view (recording.float32), with switches in those that `layers` name.

    `layers` are by graph ("predictor guided").
    """

    def __init__(self, view: Bundle, layers: Layers, kind: str, threads: int = 0) -> None:
        super().__init__(view, threads)
        self._networks = {
            graph.name: SwitchedNetwork(view, graph, layers[graph.name], kind, threads)
            for graph in view.manifest.graphs
            if graph.name in layers
        }
        self._known: dict[tuple[Any, ...], NDArray[Any]] = {}

    def switch(self, quantized: Mapping[str, Collection[str]]) -> None:
        """Quantise these layers, by network, and no others."""
        for name, network in self._networks.items():
            network.switch(quantized.get(name, ()))

    def evaluate(self, network: str, variant: str | None, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        name = f"{network} {variant}"
        if name in self._networks:
            return self._networks[name](inputs)
        if variant is not None:
            return super().evaluate(network, variant, inputs)
        # What depends on time and labels alone is asked for again with every choice of switches.
        key = (network, *((n, array.tobytes()) for n, array in sorted(inputs.items())))
        if key in self._known:
            return self._known[key]
        found = super().evaluate(network, None, inputs)
        if sum(known.nbytes for known in self._known.values()) + found.nbytes <= KNOWN_BYTES:
            self._known[key] = found
        return found
