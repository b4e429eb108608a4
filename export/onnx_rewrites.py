"""Small named rewrites of ONNX graphs: each does one thing in place and says how often.

A rewrite is a function (model) → number of changes. One that finds the graph broken raises
RewriteError; `apply` names it.
"""

from collections.abc import Callable, Sequence

import onnx_ir as ir

from flowturbo_trt.sampling.errors import FlowTurboError

Rewrite = Callable[[ir.Model], int]


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


def check_batch(model: ir.Model) -> int:
    """Require that axis 0 of every input and output is symbolic: some exports silently fix it."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is None or not isinstance(value.shape[0], ir.SymbolicDim):
            raise RewriteError(f"{value.name} has the fixed shape {value.shape}, expected a symbolic batch")
    return 0
