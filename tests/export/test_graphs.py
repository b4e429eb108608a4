"""What is exported for which conditioning: interfaces, weights, keys, and the label that stands for none."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowturbo_trt.bundle.manifest import conditioner_of
from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.export.graphs import Exportable, export_one, exportables
from flowturbo_trt.export.keys import difference, graph_key
from flowturbo_trt.export.onnx_graph import ExportError, export_graph
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.export.sources import Sources, load_sources
from flowturbo_trt.models.sit import SiT
from flowturbo_trt.sampling.program import VARIANTS

Arrays = Mapping[str, NDArray[Any]]
Call = Callable[[Path, Arrays], NDArray[Any]]
NULL = 10


@pytest.fixture(scope="module")
def sources(golden_options: BuildOptions) -> Sources:
    return load_sources(golden_options)


def items(sources: Sources, conditioning: str, variants: tuple[str, ...] = VARIANTS) -> dict[str, Exportable]:
    return {item.name: item for item in exportables(sources, variants, conditioning)}


def test_conditioners_are_shared_between_the_variants(sources: Sources) -> None:
    assert [item.name for item in exportables(sources, VARIANTS, "hoisted")] == [
        "predictor guided",
        "refiner guided",
        "predictor unguided",
        "refiner unguided",
        "predictor_conditioner",
        "refiner_conditioner",
        "decoder",
    ]
    found = items(sources, "hoisted", ("unguided",))
    assert [name for name in found if "conditioner" in name] == [
        "predictor_conditioner",
        "refiner_conditioner",
    ]
    assert not [name for name in items(sources, "fused") if "conditioner" in name]


def test_without_a_refiner_it_has_no_conditioner(golden_options: BuildOptions, sources: Sources) -> None:
    alone = Sources(**{**vars(sources), "refiner": None})
    assert list(items(alone, "hoisted", ("guided",))) == [
        "predictor guided",
        "predictor_conditioner",
        "decoder",
    ]


def test_interface_of_conditioners(sources: Sources) -> None:
    for network, width in (("predictor", 1920), ("refiner", 768)):
        item = items(sources, "hoisted")[conditioner_of(network)]
        described = [(t.name, t.dtype, t.shape) for t in (*item.inputs, item.output)]
        assert described == [
            ("time", "float32", ("batch",)),
            ("label", "int64", ("batch",)),
            ("modulation", "float32", ("batch", width)),
        ]
        assert (item.variant, item.checkpoint, item.file) == (None, network, f"{network}_conditioner.onnx")


def test_hoisting_neither_adds_nor_loses_weights(sources: Sources) -> None:
    fused, hoisted = items(sources, "fused"), items(sources, "hoisted")
    for network in ("predictor", "refiner"):
        conditioner = hoisted[conditioner_of(network)].weight_bytes
        for variant in VARIANTS:
            name = f"{network} {variant}"
            assert hoisted[name].weight_bytes + conditioner == fused[name].weight_bytes
            assert hoisted[name].weight_bytes > 0.3 * fused[name].weight_bytes


def test_keys_tell_fused_from_hoisted(sources: Sources) -> None:
    """A trunk must not be taken for the whole network, nor a conditioner for its trunk."""
    weights = sources.provenance["predictor"]
    fused, hoisted = items(sources, "fused"), items(sources, "hoisted")
    for name in ("predictor guided", "predictor unguided"):
        keys = [graph_key(found[name], weights) for found in (fused, hoisted)]
        assert difference(*keys) == "interface, shape"
        conditioner = graph_key(hoisted["predictor_conditioner"], weights)
        assert all(conditioner != key for key in keys)
    decoders = [graph_key(found["decoder"], sources.provenance["decoder"]) for found in (fused, hoisted)]
    assert decoders[0] == decoders[1]


def test_key_of_a_conditioner_knows_nothing_of_guidance(sources: Sources) -> None:
    """It serves every variant and kind of guidance, and is not made anew for another."""
    other = Sources(**{**vars(sources), "guided_channels": 4})
    keys = {
        name: [
            graph_key(items(given, "hoisted")[name], sources.provenance["predictor"])
            for given in (sources, other)
        ]
        for name in ("predictor_conditioner", "predictor guided")
    }
    assert keys["predictor_conditioner"][0] == keys["predictor_conditioner"][1]
    assert keys["predictor guided"][0] != keys["predictor guided"][1]


@pytest.mark.parametrize("network", ["predictor", "refiner"])
@torch.no_grad()
def test_null_label_is_exported(network: str, sources: Sources, golden_bundle: Path, call: Call) -> None:
    """The conditioner's graph knows one label more than requests may give, and it is the right one."""
    sit = sources.predictor if network == "predictor" else sources.refiner
    assert isinstance(sit, SiT)
    assert sit.config.null_label == NULL
    time, label = np.array([0.0, 0.4, 0.4], np.float32), np.array([NULL, NULL, 9])
    found = call(golden_bundle / "onnx" / f"{network}_conditioner.onnx", {"time": time, "label": label})
    expected = torch.cat(sit.modulations(sit.condition(torch.from_numpy(time), torch.from_numpy(label))), 1)
    assert relative_l2(found, expected.numpy()) <= 1e-5
    assert relative_l2(found[1], found[2]) > 0.01


def test_null_label_is_checked_when_exporting(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request gives it, so that nothing else would find it wrong."""
    item = items(sources, "hoisted")["refiner_conditioner"]

    def export_wrongly(module: nn.Module, inputs: dict[str, Tensor], output: str) -> Any:
        wrong = copy.deepcopy(module)
        wrong.get_parameter("network.y_embedder.embedding_table.weight").data[NULL] *= 1.1
        return export_graph(wrong, inputs, output)

    monkeypatch.setattr("flowturbo_trt.export.graphs.export_graph", export_wrongly)
    with pytest.raises(ExportError, match=r"refiner_conditioner.onnx: differs from torch by \S+"):
        export_one(item, tmp_path)
