"""Exported graphs: interface, symbolic batch, numbers against torch, and what does not go out."""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowturbo_trt.bundle.manifest import Tensor as Described
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.export import onnx_graph
from flowturbo_trt.export.graphs import Exportable, export_one, exportables
from flowturbo_trt.export.onnx_graph import ExportError, export_graph, load_graph, save_graph
from flowturbo_trt.export.onnx_rewrites import RewriteError
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.export.sources import load_sources
from flowturbo_trt.sampling.program import VARIANTS

Arrays = Mapping[str, NDArray[Any]]
Call = Callable[[Path, Arrays], NDArray[Any]]
ROOT = Path(__file__).parents[2]
DTYPES = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64, "uint8": onnx.TensorProto.UINT8}
INTERFACES = {
    "hoisted predictor.guided": "state modulation null_modulation guidance -> velocity",
    "hoisted predictor.unguided": "state modulation -> velocity",
    "hoisted predictor_conditioner": "time label -> modulation",
    "hoisted refiner.guided": "state modulation null_modulation guidance velocity -> offset",
    "hoisted refiner.unguided": "state modulation velocity -> offset",
    "hoisted refiner_conditioner": "time label -> modulation",
    "hoisted decoder": "state -> image",
    "fused predictor.guided": "state time label guidance -> velocity",
    "fused predictor.unguided": "state time label -> velocity",
    "fused refiner.guided": "state time label guidance velocity -> offset",
    "fused refiner.unguided": "state time label velocity -> offset",
}
SHAPES: dict[str, list[int | str]] = {
    "state": ["batch", 4, 8, 8],
    "time": ["batch"],
    "label": ["batch"],
    "guidance": ["batch"],
    "image": ["batch", 16, 16, 3],
}
MODULATIONS = ("modulation", "null_modulation")


class Shift(nn.Module):
    """A network small enough to export in a moment."""

    def __init__(self, batch: int | None = None) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.arange(4.0), requires_grad=False)
        self.batch = batch

    def forward(self, state: Tensor) -> Tensor:
        if self.batch is not None:
            # What `chunk` does to a traced batch.
            state = state.reshape(self.batch, 4)
        return 2 * state + self.amount


def describe(value: onnx.ValueInfoProto) -> tuple[str, int, list[int | str]]:
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]


def test_standard(graph: Path) -> None:
    onnx.checker.check_model(graph, full_check=True)


def test_interface(graph: Path, arrays: Arrays, conditioning: str) -> None:
    """Names, types and shapes are those of bundle/FORMAT.md, axis 0 the only symbolic one."""
    model = onnx.load(graph)
    inputs, outputs = INTERFACES[f"{conditioning} {graph.stem}"].split(" -> ")
    assert [value.name for value in model.graph.input] == inputs.split()
    assert [value.name for value in model.graph.output] == [outputs]
    shapes = SHAPES | {name: ["batch", arrays[name].shape[1]] for name in MODULATIONS}
    latent = ["batch", 2 if graph.stem.endswith(".guided") else 1, 4, 8, 8]
    for value in (*model.graph.input, *model.graph.output):
        name, dtype, shape = describe(value)
        assert dtype == DTYPES[{"label": "int64", "image": "uint8"}.get(name, "float32")]
        assert shape == shapes.get(name, latent)


def test_manifest_describes_the_file(graph: Path) -> None:
    graphs = Bundle.open(graph.parents[1]).manifest.graphs
    (described,) = (found for found in graphs if found.file == f"onnx/{graph.name}")
    model = onnx.load(graph)
    found = [describe(value) for value in (*model.graph.input, *model.graph.output)]
    tensors: tuple[Described, ...] = (*described.inputs, *described.outputs)
    assert found == [(t.name, DTYPES[t.dtype], list(t.shape)) for t in tensors]


def test_numbers_of_torch(
    graph: Path, conditioning: str, arrays: Arrays, golden_options: BuildOptions, call: Call
) -> None:
    """A batch of five, which was neither traced nor built for."""
    sources = load_sources(golden_options)
    item = next(i for i in exportables(sources, VARIANTS, conditioning) if i.file == graph.name)
    with torch.no_grad():
        expected = item.module(**{t.name: torch.from_numpy(arrays[t.name]) for t in item.inputs}).numpy()
    found = call(graph, arrays)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if item.network == "decoder":
        assert len(np.unique(expected)) > 100
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    else:
        assert relative_l2(found, expected) <= 1e-5


def test_nothing_of_the_machine_goes_out(graph: Path) -> None:
    """The exporter would write stack traces with source lines and paths into every node."""
    content = graph.read_bytes()
    for trace in (str(ROOT).encode(), b'File "', b".py", b"site-packages", b"namespace", b"pkg.torch"):
        assert trace not in content


def test_every_axis_0_is_checked(tmp_path: Path) -> None:
    model = export_graph(Shift(), {"state": torch.randn(2, 4)}, "shifted")
    assert str(model.graph.inputs[0].shape) == "[batch,4]"
    assert str(model.graph.outputs[0].shape) == "[batch,4]"


def test_fixed_batch_is_refused() -> None:
    with pytest.raises(RewriteError) as caught:
        export_graph(Shift(batch=2), {"state": torch.randn(2, 4)}, "shifted")
    assert re.search(r"check_batch: \w+ has the fixed shape \[2,\s?4\]", str(caught.value))


def test_exporting_leaves_the_module_alone() -> None:
    module = Shift()
    before = copy.deepcopy(module.state_dict())
    export_graph(module, {"state": torch.randn(2, 4)}, "shifted")
    torch.testing.assert_close(dict(module.state_dict()), dict(before), rtol=0, atol=0)


def test_large_weights_lie_beside_the_file(
    tmp_path: Path, golden_bundle: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    source = golden_bundle / "onnx" / "refiner.unguided.onnx"
    monkeypatch.setattr(onnx_graph, "EXTERNAL_DATA_BYTES", 300_000)
    files = save_graph(load_graph(source), tmp_path / "network.onnx")
    assert files == [tmp_path / "network.onnx", tmp_path / "network.onnx.data"]
    assert files[0].stat().st_size < 100_000 < 300_000 < files[1].stat().st_size
    random = np.random.default_rng(1)
    arrays: Arrays = {
        "state": random.standard_normal((2, 4, 8, 8), dtype=np.float32),
        "modulation": random.standard_normal((2, 768), dtype=np.float32),
        "velocity": random.standard_normal((2, 1, 4, 8, 8), dtype=np.float32),
    }
    np.testing.assert_array_equal(call(files[0], arrays), call(source, arrays))
    # Read again, it is written whole once more.
    monkeypatch.setattr(onnx_graph, "EXTERNAL_DATA_BYTES", 2**40)
    (tmp_path / "elsewhere").mkdir()
    (whole,) = save_graph(load_graph(files[0]), tmp_path / "elsewhere" / "whole.onnx")
    assert call(whole, arrays).shape == (2, 1, 4, 8, 8)


@pytest.fixture
def shift(tmp_path: Path) -> Exportable:
    state = Described("state", "float32", ("batch", 4))
    velocity = replace(state, name="velocity")
    return Exportable("predictor", None, "predictor", Shift(), (state,), velocity, {})


def test_export_is_compared_with_torch(shift: Exportable, tmp_path: Path) -> None:
    assert export_one(shift, tmp_path) == [tmp_path / "predictor.onnx"]
    assert (tmp_path / "predictor.onnx").is_file()


@pytest.mark.parametrize("change", [1e-3, float("nan")])
def test_export_that_differs_from_torch_fails(
    shift: Exportable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: float
) -> None:
    """An exporter that goes wrong without saying so."""

    def export_wrongly(module: nn.Module, inputs: dict[str, Tensor], output: str) -> Any:
        wrong = copy.deepcopy(module)
        wrong.get_parameter("amount").data[0] += change
        return export_graph(wrong, inputs, output)

    monkeypatch.setattr("flowturbo_trt.export.graphs.export_graph", export_wrongly)
    with pytest.raises(ExportError, match=r"predictor.onnx: differs from torch by \S+, at most \S+"):
        export_one(shift, tmp_path)
