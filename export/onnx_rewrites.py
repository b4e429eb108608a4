"""Small named rewrites of ONNX graphs: each does one thing in place and says how often.

A rewrite is a function (model) → number of changes. One that finds the graph broken raises
RewriteError; `apply` names it.
"""

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_ir as ir

from flowturbo_trt.sampling.errors import FlowTurboError

# What the exporter calls a parameter; all other initializers are constants of the arithmetic.
PARAMETER_ENDS = (".weight", ".bias", ".pos_embed")

Rewrite = Callable[[ir.Model], int]
# The exporter's note on a node: the modules around it, outermost first, and the name of the operation.
SCOPES = "pkg.torch.onnx.name_scopes"
# Which inputs of an operator hold which parameter of its module.
ROLES: dict[str, dict[int, str]] = {
    "Add": {0: "bias", 1: "bias"},
    "Conv": {1: "weight", 2: "bias"},
    "Gather": {0: "weight"},
    "Gemm": {1: "weight", 2: "bias"},
    "GroupNormalization": {1: "weight", 2: "bias"},
    "LayerNormalization": {1: "weight", 2: "bias"},
    "MatMul": {1: "weight"},
}


class RewriteError(FlowTurboError):
    """A rewrite met a graph it cannot treat."""


def apply(model: ir.Model, rewrites: Sequence[Rewrite]) -> dict[str, int]:
    """Run rewrites in order; return the number of changes by name."""
    counts = {}
    for rewrite in rewrites:
        name = getattr(rewrite, "__name__", str(rewrite))
        try:
            counts[name] = rewrite(model)
        except RewriteError as error:
            raise RewriteError(f"rewrite {name}: {error}") from error
    return counts


def strip_metadata(model: ir.Model) -> int:
    """Remove stack traces and source paths, which differ between machines and tell about them."""
    count = 0
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        count += len(node.metadata_props)
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.doc_string = model.doc_string = None
    return count


def name_weights(parameters: Mapping[str, Sequence[int]]) -> Rewrite:
    """Make the rewrite that gives every parameter of a module, known by name and shape, its initializer.

    The exporter transposes the weights of linear layers into nameless constants, and lets parameters
    with equal content (of layers not trained yet) share one initializer under the name of the first. A
    MatMul's weight keeps its layout (in,out). Biases of zeros, which the exporter leaves out, stay out.
    To be run before `strip_metadata`, since the exporter's notes tell a node's module.
    """

    def name_weights(model: ir.Model) -> int:
        count = sum(
            _name_input(model.graph, node, slot, name, tuple(parameters[name]))
            for node in model.graph
            for slot, name in _parameters_of(node)
            if name in parameters
        )
        for name in parameters:
            if name not in model.graph.initializers and not name.endswith(".bias"):
                raise RewriteError(f"the parameter {name} is nowhere in the graph, expected an initializer")
        return count

    return name_weights


def is_transposed(node: ir.Node) -> bool:
    """Return whether a node takes its weight as (in,out), where torch has (out,in)."""
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 0)


def _parameters_of(node: ir.Node) -> Iterator[tuple[int, str]]:
    """Yield the inputs of a node that are constants, with the name of the parameter each would be."""
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    for slot, role in ROLES.get(node.op_type, {}).items():
        value = node.inputs[slot] if slot < len(node.inputs) else None
        if len(scopes) > 1 and value is not None and value.is_initializer():
            yield slot, ".".join(part for part in (scopes[-2], role) if part)


def _name_input(graph: ir.Graph, node: ir.Node, slot: int, name: str, shape: tuple[int, ...]) -> int:
    """Let an input be the initializer `name`, of its own where it is shared; return the number of changes."""
    value = node.inputs[slot]
    assert value is not None
    assert value.const_value is not None
    if value.name == name:
        return 0
    found = tuple(value.const_value.shape.numpy())
    if found != (shape[::-1] if is_transposed(node) else shape):
        raise RewriteError(f"{value.name} of shape {list(found)} is in place of {name} {list(shape)}")
    if name not in graph.initializers:
        own = ir.Value(name=name, shape=value.shape, type=value.type)
        own.const_value = ir.tensor(value.const_value.numpy(), name=name)
        graph.register_initializer(own)
    node.replace_input_with(slot, graph.initializers[name])
    if not value.uses():
        del graph.initializers[str(value.name)]
    return 1


def check_batch(model: ir.Model) -> int:
    """Require that axis 0 of every input and output is symbolic: some exports silently fix it."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is None or not isinstance(value.shape[0], ir.SymbolicDim):
            raise RewriteError(f"{value.name} has the fixed shape {value.shape}, expected a symbolic batch")
    return 0
