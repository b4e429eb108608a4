"""TensorRT-RTX plans, really built: this needs no GPU and no driver. What runs them is tested elsewhere."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from flowturbo_trt.bundle.manifest import Tensor
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.export.build import build
from flowturbo_trt.export.compile import CompileError, EngineRequest, load_compiler
from flowturbo_trt.export.compile_tensorrt import compile_plan
from flowturbo_trt.export.options import BuildOptions

trt = pytest.importorskip("tensorrt_rtx")
BACKEND = "tensorrt-rtx"


class Spy(ModuleType):
    """tensorrt_rtx whose builder notes what it is given to build; plans cannot be opened without a driver."""

    def __init__(self, refuse: bool = False) -> None:
        super().__init__(trt.__name__)
        self.__dict__.update({**vars(trt), "Builder": self.make_builder})
        self.refuse = refuse
        self.profiles: list[Any] = []
        self.dtypes: dict[str, Any] = {}
        self.inner: set[Any] = set()
        self.tf32: bool | None = None

    def make_builder(self, log: Any) -> Any:
        spy, real = self, trt.Builder(log)
        spy.profiles = []

        class Builder:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def create_optimization_profile(self) -> Any:
                profile = real.create_optimization_profile()
                spy.profiles.append(profile)
                return profile

            def build_serialized_network(self, network: Any, config: Any) -> Any:
                spy.note(network, config)
                return None if spy.refuse else real.build_serialized_network(network, config)

        return Builder()

    def note(self, network: Any, config: Any) -> None:
        assert config.num_optimization_profiles == len(self.profiles)
        self.tf32 = config.get_flag(trt.BuilderFlag.TF32)
        # What capturing a plan in a CUDA graph asks for, and reading its inner types.
        assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        assert config.max_aux_streams == 0
        assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
        tensors = [network.get_input(i) for i in range(network.num_inputs)]
        tensors += [network.get_output(i) for i in range(network.num_outputs)]
        self.dtypes = {tensor.name: tensor.dtype for tensor in tensors}
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        products = [layer for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY]
        self.inner = {layer.get_output(0).dtype for layer in products}


def request_of(bundle: Path) -> EngineRequest:
    graph = next(g for g in Bundle.open(bundle).manifest.graphs if g.network == "refiner")
    file = bundle / graph.file
    return EngineRequest("refiner", "guided", file, graph.inputs, graph.outputs, "fp16", (1, 3))


@pytest.fixture
def request_for_tests(tiny_bundle: Path) -> EngineRequest:
    return request_of(tiny_bundle)


def assert_plan(path: Path) -> None:
    """What can be told without a driver: that the header is whole, of this version."""
    assert path.stat().st_size > 10_000
    runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
    _, problems = runtime.get_engine_validity(path.read_bytes())
    wrong = trt.EngineInvalidityDiagnostics
    assert not problems & (int(wrong.MALFORMED_ENGINE) | int(wrong.VERSION_MISMATCH))
    _, problems = runtime.get_engine_validity(b"x" * 1000)
    assert problems & int(wrong.MALFORMED_ENGINE)


@pytest.mark.parametrize(
    ("bundle", "steering"),
    [
        ("tiny_bundle", {"modulation": (128,), "null_modulation": (128,)}),
        ("tiny_fused_bundle", {"time": (), "label": ()}),
    ],
)
def test_plan(
    bundle: str, steering: dict[str, tuple[int, ...]], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    spy = Spy()
    (path,) = compile_plan(spy, BACKEND, (), request_of(request.getfixturevalue(bundle)), tmp_path)
    assert list(tmp_path.iterdir()) == [path] == [tmp_path / "refiner.guided.fp16.plan"]
    assert_plan(path)
    # One plan for both batch sizes, each fixed: the least, usual and largest shape are the same.
    for profile, batch in zip(spy.profiles, (1, 3), strict=True):
        assert [tuple(shape) for shape in profile.get_shape("state")] == [(batch, 2, 4, 4)] * 3
        assert [tuple(shape) for shape in profile.get_shape("velocity")] == [(batch, 1, 2, 4, 4)] * 3
        for name, rest in steering.items():
            assert [tuple(shape) for shape in profile.get_shape(name)] == [(batch, *rest)] * 3
    assert set(spy.dtypes) == {"state", *steering, "guidance", "velocity", "offset"}
    assert {dtype for name, dtype in spy.dtypes.items() if name != "label"} == {trt.float32}
    assert spy.dtypes.get("label", trt.int64) == trt.int64


@pytest.mark.parametrize("separate_plans", [False, True])
def test_conditioner_plan_has_one_profile(
    tiny_options: BuildOptions,
    instant_export: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    separate_plans: bool,
) -> None:
    """Of 64 rows, whatever the batch sizes: its rows are times and labels, filled up."""
    spy = Spy()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", spy)
    options = replace(
        tiny_options, refiner=None, decoder=None, schedules=("H2",), backends=(BACKEND,), precisions=("fp16",)
    )
    manifest = build(replace(options, separate_plans=separate_plans), tmp_path / "bundle").manifest
    engine = manifest.engines[-1]
    assert (engine.network, engine.variant, engine.batches) == ("predictor_conditioner", None, (64,))
    assert engine.file == "engines/tensorrt-rtx/predictor_conditioner.fp16.plan"
    assert [engine.is_conditioner for engine in manifest.engines].count(True) == 1
    # It is compiled last.
    (profile,) = spy.profiles
    for name in ("time", "label"):
        assert [tuple(shape) for shape in profile.get_shape(name)] == [(64,)] * 3
    assert spy.dtypes == {"time": trt.float32, "label": trt.int64, "modulation": trt.float32}
    assert spy.inner == {trt.float16, trt.float32}


@pytest.mark.parametrize(
    ("precision", "expected"), [("fp16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32")]
)
def test_inner_precision(
    request_for_tests: EngineRequest, tmp_path: Path, precision: str, expected: str
) -> None:
    """A strongly typed network computes in what the graph says: an unlowered one would stay float32."""
    spy = Spy(refuse=True)
    request = replace(request_for_tests, precision=precision)
    with pytest.raises(CompileError, match="refused"):
        compile_plan(spy, BACKEND, (), request, tmp_path)
    # The time embedding's products stay float32.
    assert spy.inner | {trt.float32} == {getattr(trt, expected), trt.float32}
    assert getattr(trt, expected) in spy.inner
    assert spy.tf32 == (precision != "fp32")


def test_bundle_holds_a_plan_for_each_graph(golden_bundle: Path) -> None:
    bundle = Bundle.open(golden_bundle)
    engines = [engine for engine in bundle.manifest.engines if engine.backend == BACKEND]
    graphs = bundle.manifest.graphs
    assert [(e.network, e.variant) for e in engines] == [(g.network, g.variant) for g in graphs]
    for engine in engines:
        assert engine.precision == "fp16"
        assert engine.batches == ((64,) if engine.is_conditioner else (1, 2))
        assert engine.file.startswith("engines/tensorrt-rtx/")
        assert_plan(bundle.file(engine.file))


@pytest.mark.parametrize("targets", [("8.9",), ("8.6", "12.0"), ("sm89",)])
def test_targets(request_for_tests: EngineRequest, tmp_path: Path, targets: tuple[str, ...]) -> None:
    compiler = load_compiler(BACKEND, targets)
    assert compiler.targets == targets
    assert compiler.builder == f"tensorrt_rtx {trt.__version__}"
    assert_plan(compiler.compile(request_for_tests, tmp_path)[0])


@pytest.mark.parametrize("target", ["9.0", "8", "", "ada", "CURRENT"])
def test_unknown_target(target: str) -> None:
    with pytest.raises(CompileError, match=rf"unknown target '{target}'; {BACKEND} knows .*8\.9.*12\.0"):
        load_compiler(BACKEND, ("8.9", target))


def test_flavour_without_targets(request_for_tests: EngineRequest, tmp_path: Path) -> None:
    """The enterprise flavour builds for the GPU it runs on."""
    spy = Spy()
    del spy.ComputeCapability
    with pytest.raises(CompileError, match=r"^tensorrt builds for the GPU of this machine only"):
        compile_plan(spy, "tensorrt", ("8.9",), request_for_tests, tmp_path)


def test_refusal_leaves_no_file(request_for_tests: EngineRequest, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"^tensorrt-rtx refused refiner.guided.fp16: it gave no reason"):
        compile_plan(Spy(refuse=True), BACKEND, (), request_for_tests, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_graph_that_does_not_parse(request_for_tests: EngineRequest, tmp_path: Path) -> None:
    model = onnx.load(request_for_tests.graph)
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Hardmax3"
    onnx.save(model, tmp_path / "strange.onnx")
    request = replace(request_for_tests, graph=tmp_path / "strange.onnx", precision="fp32")
    with pytest.raises(CompileError, match=r"^tensorrt-rtx, refiner\.guided\.fp32: the parser .*Hardmax3 "):
        compile_plan(trt, BACKEND, (), request, tmp_path)


def test_graph_of_another_interface(request_for_tests: EngineRequest, tmp_path: Path) -> None:
    image = (Tensor("image", "uint8", ("batch", 8, 8, 3)),)
    with pytest.raises(
        CompileError, match=r"refiner.guided.fp16: has tensors .*'offset'.*, expected .*'image'"
    ):
        compile_plan(trt, BACKEND, (), replace(request_for_tests, outputs=image), tmp_path)
