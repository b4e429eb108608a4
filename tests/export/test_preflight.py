"""What a build needs, told before it starts; and the options that change what a bundle holds."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.export import preflight
from flowturbo_trt.export.build import build
from flowturbo_trt.export.networks import velocity_outputs_only
from flowturbo_trt.export.onnx_graph import load_graph
from flowturbo_trt.export.options import BuildError, BuildOptions
from flowturbo_trt.export.preflight import (
    Need,
    ResourceError,
    available_memory,
    build_need,
    check_need,
    engine_need,
)
from flowturbo_trt.export.quantization import WEIGHT
from flowturbo_trt.export.sources import load_sources
from flowturbo_trt.models.sit import SiT
from flowturbo_trt.tests.export.recipes import recipe_for, saved

GIB = 2**30
# SiT-XL/2, its refiner and the Stable Diffusion decoder in float32.
FULL_SIZE = {"predictor": 2_700_000_000, "refiner": 119_000_000, "decoder": 198_000_000}


def need(backend: str = "tensorrt-rtx", precision: str = "fp16", variants: int = 1) -> Need:
    return build_need(FULL_SIZE, [backend], {backend: precision}, variants)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Mapping[str, int], Mapping[str, Any]]]:
    """The weights and the sizes of engines that builds ask about."""
    found: list[tuple[Mapping[str, int], Mapping[str, Any]]] = []

    def need_of(weights: Mapping[str, int], sizes: Mapping[str, Any], variants: int) -> Need:
        found.append((weights, sizes))
        return Need(0, 0)

    monkeypatch.setattr("flowturbo_trt.export.build.engine_need", need_of)
    return found


def test_need_of_a_full_size_build() -> None:
    """6.5 GiB were measured with a decoder of 256 pixels, 7.9 with one of 512."""
    assert 6.5 * GIB < need().memory_bytes < 8.5 * GIB


def test_float32_graphs_are_engines_already() -> None:
    assert need("onnxruntime", precision="fp32").disk_bytes == sum(FULL_SIZE.values())


def test_disk_of_engines() -> None:
    """Beside the graphs: the engines, and the graph that the largest is compiled from."""
    graphs = sum(FULL_SIZE.values())
    assert need().disk_bytes == graphs + (graphs + FULL_SIZE["predictor"]) // 2


def test_every_variant_takes_disk_but_no_more_memory() -> None:
    one, two = need(), need(variants=2)
    assert two.memory_bytes == one.memory_bytes
    assert two.disk_bytes > 1.5 * one.disk_bytes


def test_conditioners_are_shared_by_the_variants() -> None:
    """On disk there is one of them, where there are two trunks."""
    sizes = {"predictor": 1000, "predictor_conditioner": 10, "decoder": 1}
    one, two = (engine_need(sizes, {"onnxruntime": {}}, n).disk_bytes for n in (1, 2))
    assert (one, two) == (1011, 2011)
    one, two = (engine_need(sizes, {"onnxruntime": sizes}, n).disk_bytes for n in (1, 2))
    assert (one, two) == (3022, 5022)


@pytest.mark.parametrize("conditioning", ["hoisted", "fused"])
def test_need_is_that_of_all_weights(
    tiny_options: BuildOptions,
    tmp_path: Path,
    instant_export: list[str],
    asked: list[tuple[Mapping[str, int], Mapping[str, Any]]],
    conditioning: str,
) -> None:
    build(replace(tiny_options, conditioning=conditioning), tmp_path / "bundle")
    ((weights, _),) = asked
    sources = load_sources(tiny_options)
    networks = [sources.predictor, sources.refiner, sources.decoder]
    held = [velocity_outputs_only(n) if isinstance(n, SiT) else n for n in networks if n is not None]
    assert sum(weights.values()) == sum(t.nbytes for n in held for t in n.state_dict().values())
    assert ("refiner_conditioner" in weights) == (conditioning == "hoisted")


def test_higher_precision_takes_more() -> None:
    assert need(precision="fp32").memory_bytes > need().memory_bytes
    assert need(precision="fp32").disk_bytes > need().disk_bytes


def weight_bytes(file: Path) -> int:
    """Return the bytes of a graph's weights, without the scales that came to them."""
    values = load_graph(file).graph.initializers
    kept = {name: value for name, value in values.items() if WEIGHT in name and not name.endswith("_scale")}
    return sum(value.const_value.nbytes for value in kept.values() if value.const_value is not None)


@pytest.mark.parametrize("names", [("predictor guided",), ("predictor guided", "refiner guided")])
@pytest.mark.parametrize("smaller", [(), ("attn.proj",)])
def test_size_of_8_bit_engines(
    tiny_options: BuildOptions,
    tiny_bundle: Path,
    tmp_path: Path,
    instant_export: list[str],
    asked: list[tuple[Mapping[str, int], Mapping[str, Any]]],
    names: tuple[str, ...],
    smaller: tuple[str, ...],
) -> None:
    """What is not quantised is in float32 in the same file; what has nothing quantised has no file."""
    recipe = recipe_for(tiny_bundle, networks=names)
    layers = {
        name: {layer: how for layer, how in of.items() if not smaller or layer.endswith(smaller)}
        for name, of in recipe.layers.items()
    }
    path = saved(recipe, tmp_path / "r.json", layers=layers)
    bundle = build(replace(tiny_options, precisions=("int8",), recipes=(path,)), tmp_path / "bundle")
    ((weights, sizes),) = asked
    engines = [engine for engine in bundle.manifest.engines if engine.precision == "int8"]
    assert sizes["onnxruntime"].keys() == {engine.network for engine in engines}
    for engine in engines:
        (graph,) = (graph for graph in bundle.manifest.graphs if graph.name == engine.name)
        before, after = (weight_bytes(bundle.path / file) for file in (graph.file, engine.file))
        assert weights[engine.network] - sizes["onnxruntime"][engine.network] == before - after


@pytest.mark.parametrize(
    ("memory", "disk", "words"),
    [
        (3 * GIB, 10**12, r"the build needs about 4\.0 GiB of memory, 3\.0 GiB are available; .*--no-pref"),
        (5 * GIB, 1 * GIB, r"the build needs about 2\.0 GiB of disk space, 1\.0 GiB are available"),
    ],
)
def test_too_little(monkeypatch: pytest.MonkeyPatch, memory: int, disk: int, words: str) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: memory)
    monkeypatch.setattr(preflight, "available_disk", lambda path: disk)
    with pytest.raises(ResourceError, match=words):
        check_need(Need(4 * GIB, 2 * GIB), Path("bundle"))


def test_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: 4 * GIB)
    check_need(Need(4 * GIB, 1), Path("bundle"))


def files(monkeypatch: pytest.MonkeyPatch, content: dict[str, str]) -> None:
    """Let the system's files read as given, and others not at all."""
    monkeypatch.setattr(preflight, "_read", lambda path: content.get(path, ""))


def test_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, {"/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n"})
    assert available_memory() == 5000 * 1024


@pytest.mark.parametrize(
    ("folder", "limit", "current", "cached"),
    [
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
)
def test_memory_of_a_container(
    monkeypatch: pytest.MonkeyPatch, folder: str, limit: str, current: str, cached: str
) -> None:
    """Its limit counts, and files it has read can be given up."""
    content = {
        "/proc/meminfo": "MemAvailable:    5000 kB\n",
        f"{folder}/{limit}": "3000000\n",
        f"{folder}/{current}": "2000000\n",
        f"{folder}/memory.stat": f"anon 1500000\n{cached} 400000\n",
    }
    files(monkeypatch, content)
    assert available_memory() == 3_000_000 - 2_000_000 + 400_000
    files(monkeypatch, content | {f"{folder}/{limit}": "max\n"})
    assert available_memory() == 5000 * 1024


def test_memory_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, {})
    with pytest.raises(ResourceError, match="cannot be read; use --no-preflight"):
        available_memory()


def test_build_asks_first(
    tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: 100)
    with pytest.raises(ResourceError, match=r"MiB of memory, 0 MiB are available"):
        build(tiny_options, tmp_path / "bundle")
    assert instant_export == []
    assert list(tmp_path.iterdir()) == []
    build(replace(tiny_options, preflight=False), tmp_path / "bundle").check_all()


def test_stripped_bundle(tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str]) -> None:
    """Float32 graphs stay where they are engines, and go where they are not."""
    kept = build(replace(tiny_options, strip=True), tmp_path / "fp32").manifest
    assert kept.graphs == ()
    assert set(kept.files) == {engine.file for engine in kept.engines}
    assert all(file.startswith("onnx/") for file in kept.files)
    gone = build(replace(tiny_options, strip=True, precisions=("fp16",)), tmp_path / "fp16")
    assert gone.manifest.graphs == ()
    assert not (gone.path / "onnx").exists()
    Bundle.open(gone.path).check_all()


def test_plan_for_each_batch_size(
    tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    backends = ("onnxruntime", "tensorrt-rtx")
    manifest = build(
        replace(tiny_options, backends=backends, separate_plans=True, refiner=None, schedules=("H2",)),
        tmp_path / "bundle",
    ).manifest
    for batch in (1, 3):
        engine = manifest.engine("predictor", "guided", "tensorrt-rtx", batch)
        assert engine.batches == (batch,)
        assert engine.file == f"engines/tensorrt-rtx/predictor.guided.fp16.b{batch}.plan"
    assert manifest.engine("predictor", "guided", "onnxruntime", 3).batches == (1, 3)
    engines = [engine for engine in manifest.engines if engine.backend == "tensorrt-rtx"]
    assert [engine.file for engine in engines if engine.is_conditioner] == [
        "engines/tensorrt-rtx/predictor_conditioner.fp16.plan"
    ]


def test_separate_plans_are_for_tensorrt(tiny_options: BuildOptions) -> None:
    with pytest.raises(BuildError, match="--separate-plans is for TensorRT; add --backend tensorrt-rtx"):
        replace(tiny_options, separate_plans=True)
