"""Rewrites: a graph before and after."""

import onnx_ir as ir
import pytest

from flowturbo_trt.export.onnx_rewrites import RewriteError, apply, check_batch, strip_metadata


def make_model(batch: int | str = "batch", output_batch: int | str | None = None) -> ir.Model:
    """A model of one node, with notes in every place that can hold one."""
    shape = ir.Shape([batch, 4])
    x = ir.Value(name="x", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    weight = ir.Value(name="w", shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT))
    weight.const_value = ir.tensor([1.0, 2.0, 3.0, 4.0], name="w")
    node = ir.node("Add", [x, weight])
    node.outputs[0].name = "y"
    node.outputs[0].shape = ir.Shape([batch if output_batch is None else output_batch, 4])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 22})
    model = ir.Model(graph, ir_version=10)
    for owner in (x, weight, node, node.outputs[0], graph, model):
        owner.metadata_props["note"] = 'File "/home/somebody/model.py", line 1'
    node.doc_string = graph.doc_string = model.doc_string = "somebody's"
    return model


def test_strip_metadata() -> None:
    model = make_model()
    assert strip_metadata(model) == 1
    text = str(ir.to_proto(model))
    assert "somebody" not in text
    assert strip_metadata(model) == 0
    assert [node.op_type for node in model.graph] == ["Add"]


def test_check_batch_accepts_a_symbolic_one() -> None:
    assert check_batch(make_model()) == 0


@pytest.mark.parametrize(
    ("model", "name"), [(make_model(2), "x"), (make_model("batch", 2), "y")], ids=["input", "output"]
)
def test_check_batch_refuses_a_fixed_one(model: ir.Model, name: str) -> None:
    with pytest.raises(RewriteError, match=rf"^{name} has the fixed shape \[2,4\], expected"):
        check_batch(model)


def test_check_batch_refuses_an_unknown_shape() -> None:
    model = make_model()
    model.graph.outputs[0].shape = None
    with pytest.raises(RewriteError, match=r"^y has"):
        check_batch(model)


def test_apply_counts_by_name() -> None:
    assert apply(make_model(), (strip_metadata, check_batch)) == {"strip_metadata": 1, "check_batch": 0}


def test_apply_names_the_rewrite_that_failed() -> None:
    with pytest.raises(RewriteError, match=r"^rewrite check_batch: x has the fixed shape"):
        apply(make_model(3), (strip_metadata, check_batch))
