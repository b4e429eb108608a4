"""The networks in torch, rebuilt from a bundle, against the bundle's engines on ONNX Runtime."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import BundleError, Manifest, OlderBundleError
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation import torch_weights
from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.evaluation.torch_reference import (
    TorchField,
    TorchOptions,
    TorchReferenceError,
    load_torch_networks,
)
from flowturbo_trt.evaluation.torch_weights import TorchWeightsError
from flowturbo_trt.export.networks import velocity_outputs_only
from flowturbo_trt.export.onnx_graph import load_graph
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.export.sources import load_sources
from flowturbo_trt.runtime.backend import load_backend
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import Request, make_request
from flowturbo_trt.sampling import reference
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace

CONDITIONER = "predictor_conditioner"
# The tiny bundle has guided engines only, all of its channels guided.
CASES = [
    ("golden", "guided", 1.7),
    ("golden", "unguided", 1.0),
    ("golden_fused", "guided", 1.7),
    ("golden_fused", "unguided", 1.0),
    ("tiny", "guided", 1.7),
]
# Guided first, unguided first, and unguided throughout where it is asked for.
INTERVALS = ["H1P1R2:guided=0..0.3", "H2R1:guided=0.4..1", "AB2x3:guided=0.2..0.5"]


@pytest.fixture
def pipeline(name: str, request: pytest.FixtureRequest) -> Pipeline:
    pipeline: Pipeline = request.getfixturevalue(f"{name}_pipeline")
    return pipeline


def make(pipeline: Pipeline, guidance: float, batch: int = 1) -> Request:
    labels = np.arange(batch) % 3
    return make_request(pipeline.manifest.model, {"label": labels}, None, guidance, None)


def noise_of(request: Request, manifest: Manifest) -> NDArray[np.float32]:
    noise = np.empty((len(request), *manifest.model.latent), dtype=np.float32)
    request.fill_noise(slice(0, len(request)), noise)
    return noise


@pytest.mark.parametrize(("name", "variant", "guidance"), CASES)
@pytest.mark.parametrize("schedule", ["H1P1R2", "AB2x3"])
def test_trajectory_is_the_engines(pipeline: Pipeline, variant: str, guidance: float, schedule: str) -> None:
    """Latents and images of a whole program: predictor, refiner where there are R steps, decoder."""
    bundle = Bundle.open(pipeline._bundle.path)
    batch = bundle.manifest.batches[-1]
    request = make(pipeline, guidance, batch)
    program = trace(Schedule.parse(schedule), variant)
    expected = pipeline.generate(request, schedule)
    inputs = (noise_of(request, bundle.manifest), request.conditions, request.guidance)
    networks = load_torch_networks(bundle)
    latents = networks.run(program, *inputs, decode=False)
    assert latents.dtype == np.float32
    assert relative_l2(latents, expected.latents) <= 1e-5
    images = networks.run(program, *inputs)
    assert images.dtype == np.uint8
    assert expected.images is not None
    assert np.abs(images.astype(int) - expected.images.astype(int)).max() <= 1


@pytest.mark.parametrize("name", ["golden", "golden_fused"])
@pytest.mark.parametrize("schedule", INTERVALS)
def test_mixed_trajectory_is_the_engines(pipeline: Pipeline, schedule: str) -> None:
    """Guided and unguided networks take turns, as the schedule says."""
    bundle = Bundle.open(pipeline._bundle.path)
    request = make(pipeline, 1.7, 2)
    program = trace(Schedule.parse(schedule), "guided")
    assert {variant for _, variant in program.evaluations()} == {"guided", "unguided"}
    expected = pipeline.generate(request, schedule, decode=False).latents
    inputs = (noise_of(request, bundle.manifest), request.conditions, request.guidance)
    networks = load_torch_networks(bundle)
    assert relative_l2(networks.run(program, *inputs, decode=False), expected) <= 1e-5
    whole = trace(Schedule.parse(schedule.partition(":")[0]), "guided")
    assert relative_l2(networks.run(whole, *inputs, decode=False), expected) > 1e-3


def test_whole_network_is_the_checkpoints(golden_bundle: Path, golden_options: BuildOptions) -> None:
    """Conditioner and trunk put together again hold every weight that was exported."""
    sources = load_sources(golden_options)
    for name, network in (("predictor", sources.predictor), ("refiner", sources.refiner)):
        assert network is not None
        expected = dict(velocity_outputs_only(network).named_parameters())
        for variant in ("guided", "unguided"):
            whole = torch_weights.rebuild_whole(Bundle.open(golden_bundle), name, variant)
            found = {key.removeprefix("network."): value for key, value in whole.named_parameters()}
            assert found.keys() == expected.keys()
            for key, value in found.items():
                torch.testing.assert_close(value, expected[key], rtol=0, atol=0, check_device=False)


def test_conditioner_is_the_engine(golden_bundle: Path) -> None:
    bundle = Bundle.open(golden_bundle)
    inputs = {"time": np.array([0, 0.3, 0.9], np.float32), "label": np.array([0, 9, 10])}
    for network in ("predictor_conditioner", "refiner_conditioner"):
        expected = load_backend("onnxruntime", bundle, "cpu", 1).evaluate(network, None, inputs)
        found = load_torch_networks(bundle).evaluate(network, None, inputs)
        assert relative_l2(found, expected) <= 1e-5


def test_hoisted_network_without_its_conditioner(tiny_bundle: Path) -> None:
    def remove(manifest: Manifest) -> Manifest:
        graphs = tuple(graph for graph in manifest.graphs if not graph.is_conditioner)
        return replace(manifest, graphs=graphs)

    with pytest.raises(TorchWeightsError, match="has no graph of the predictor_conditioner; rebuild"):
        torch_weights.rebuild_whole(changed(tiny_bundle, remove), "predictor", "guided")


@pytest.mark.parametrize(("name", "variant", "guidance"), CASES)
@pytest.mark.parametrize("network", ["predictor", "refiner"])
def test_network_is_the_engine(pipeline: Pipeline, variant: str, guidance: float, network: str) -> None:
    """One call, with a time and a guidance of its own in every row."""
    bundle = Bundle.open(pipeline._bundle.path)
    graph = next(g for g in bundle.manifest.graphs if (g.network, g.variant) == (network, variant))
    batch = bundle.manifest.batches[-1]
    random = np.random.default_rng(3)
    inputs: dict[str, NDArray[Any]] = {}
    for tensor in graph.inputs:
        shape = (batch, *map(int, tensor.shape[1:]))
        drawn = guidance * random.random(shape, dtype=np.float32)
        inputs[tensor.name] = np.arange(batch) if tensor.dtype == "int64" else drawn
    expected = load_backend("onnxruntime", bundle, "cpu", 1).evaluate(network, variant, inputs)
    found = load_torch_networks(bundle).evaluate(network, variant, inputs)
    assert found.shape == expected.shape
    assert relative_l2(found, expected) <= 1e-5


def test_field_runs_formulas(golden_bundle: Path) -> None:
    """The steps called on tensors give what the program traced from them gives."""
    bundle = Bundle.open(golden_bundle)
    networks = load_torch_networks(bundle)
    schedule = Schedule.parse("H1P1R1")
    noise = np.random.default_rng(0).standard_normal((2, *bundle.manifest.model.latent), dtype=np.float32)
    labels, guidance = {"label": np.array([0, 2])}, np.array([1.5, 3], dtype=np.float32)
    with torch.inference_mode():
        bound = networks.field("unguided", labels, guidance)
        *_, (x, _) = reference.sample(schedule, Conditional(bound), networks.tensor(noise))
    assert isinstance(x, torch.Tensor)
    expected = networks.run(trace(schedule, "unguided"), noise, labels, guidance, decode=False)
    np.testing.assert_array_equal(x.numpy(), expected)


class Conditional:
    """An unguided field without the axis of the halves, which the formulas know nothing about."""

    def __init__(self, field: TorchField) -> None:
        self.field = field

    def predict(self, x: torch.Tensor, t: float) -> torch.Tensor:
        return self.field.predict(x, t)[:, 0]

    def refine(self, x: torch.Tensor, v: torch.Tensor, t: float) -> torch.Tensor:
        return self.field.refine(x, v[:, None], t)[:, 0]


@pytest.mark.parametrize(("precision", "limit"), [("bf16", 0.05), ("fp16", 0.01)])
def test_lower_precision_is_near_but_not_the_same(tiny_bundle: Path, precision: str, limit: float) -> None:
    bundle = Bundle.open(tiny_bundle)
    program = bundle.manifest.programs["H1P1R1"]["guided"]
    noise = np.random.default_rng(0).standard_normal((2, *bundle.manifest.model.latent), dtype=np.float32)
    inputs = (noise, {"label": np.array([0, 2])}, np.full(2, 1.5, dtype=np.float32))
    exact = load_torch_networks(bundle).run(program, *inputs, decode=False)
    networks = load_torch_networks(bundle, TorchOptions(precision=precision))
    found = networks.run(program, *inputs, decode=False)
    assert found.dtype == np.float32
    assert 1e-6 < relative_l2(found, exact) < limit
    images = networks.run(program, *inputs)
    assert images.dtype == np.uint8
    assert len(np.unique(images)) > 10


def test_compiling_asks_torch_for_static_shapes(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled is the whole network, and it is what runs; compiling itself takes too long here."""
    asked: list[dict[str, Any]] = []

    def compile_(module: torch.nn.Module, **options: Any) -> Callable[..., torch.Tensor]:
        asked.append(options)
        return module

    monkeypatch.setattr(torch, "compile", compile_)
    bundle = Bundle.open(tiny_bundle)
    program = bundle.manifest.programs["H2"]["guided"]
    noise = np.zeros((1, *bundle.manifest.model.latent), dtype=np.float32)
    inputs = (noise, {"label": np.array([1])}, np.ones(1, dtype=np.float32))
    compiled = load_torch_networks(bundle, TorchOptions(compiled=True)).run(program, *inputs)
    assert asked == [{"fullgraph": True, "dynamic": False, "mode": None}] * 2
    np.testing.assert_array_equal(compiled, load_torch_networks(bundle).run(program, *inputs))


def changed(path: Path, change: Callable[[Manifest], Manifest]) -> Bundle:
    return Bundle(path, change(Bundle.open(path).manifest))


def with_model(**values: Any) -> Callable[[Manifest], Manifest]:
    return lambda manifest: replace(manifest, model=replace(manifest.model, **values))


@pytest.mark.parametrize(
    ("network", "change", "complaint"),
    [
        ("decoder", with_model(decoder_config=None), "the manifest does not tell the decoder's shape"),
        ("decoder", with_model(decoder_config={"block_out_channels": 3}), "no network can be made of"),
        ("predictor", with_model(config={"depth": 1}), "no network can be made of"),
        ("predictor", lambda m: replace(m, graphs=()), "has no graph of the guided predictor"),
    ],
)
def test_manifest_that_does_not_describe_a_network(
    tiny_bundle: Path, network: str, change: Callable[[Manifest], Manifest], complaint: str
) -> None:
    bundle = changed(tiny_bundle, change)
    with pytest.raises(BundleError, match=complaint) as caught:
        torch_weights.rebuild(bundle, network, None if network == "decoder" else "guided")
    assert "rebuild the bundle" in str(caught.value) or "(" in str(caught.value)


@pytest.mark.parametrize(
    ("network", "config", "complaint"),
    [
        ("predictor", {"depth": 2}, r"has no network.blocks.1.attn.proj.weight, which"),
        ("predictor", {"depth": 0}, r"has network.blocks.0.attn.proj.bias, which .* no place for"),
        (CONDITIONER, {"depth": 2}, r"has no network.blocks.1.adaLN_modulation.1.weight, which"),
        (CONDITIONER, {"depth": 0}, r"has network.blocks.0.adaLN_modulation.1.bias, which .* no place for"),
        (CONDITIONER, {"num_classes": 5}, r"y_embedder.embedding_table.weight is \[4, 16\], \[6, 16\] by"),
    ],
)
def test_weights_that_do_not_fit(
    tiny_bundle: Path, network: str, config: Mapping[str, int], complaint: str
) -> None:
    old = Bundle.open(tiny_bundle).manifest.model.config
    bundle = changed(tiny_bundle, with_model(config={**old, **config}))
    with pytest.raises(TorchWeightsError, match=complaint):
        torch_weights.rebuild(bundle, network, "guided" if network == "predictor" else None)
    # Both parts of the whole network are wrong then, or one of them.
    with pytest.raises(TorchWeightsError, match=r"rebuild the bundle|configuration"):
        torch_weights.rebuild_whole(bundle, "predictor", "guided")


def test_graph_of_a_bundle_without_names(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What graphs were like before their weights were named."""

    def nameless(path: Path) -> ir.Model:
        model = load_graph(path)
        model.graph.initializers["network.blocks.0.mlp.fc1.weight"].name = "val_48"
        return model

    monkeypatch.setattr(torch_weights, "load_graph", nameless)
    with pytest.raises(
        TorchWeightsError, match=r"has no network.blocks.0.mlp.fc1.weight, which the manifest"
    ):
        torch_weights.rebuild(Bundle.open(tiny_bundle), "predictor", "guided")

    def without_keys(manifest: Manifest) -> Manifest:
        return replace(manifest, graphs=tuple(replace(graph, key={}) for graph in manifest.graphs))

    with pytest.raises(OlderBundleError, match="does not name its weights, as bundles of today do; rebuild"):
        torch_weights.rebuild(changed(tiny_bundle, without_keys), "predictor", "guided")


def test_options_are_checked() -> None:
    with pytest.raises(TorchReferenceError, match="precision 'fp8', expected fp32 or fp16 or bf16"):
        TorchOptions(precision="fp8")
    if not torch.cuda.is_available():
        with pytest.raises(TorchReferenceError, match="device cuda:0: this torch sees no GPU"):
            TorchOptions(device="cuda:0")
