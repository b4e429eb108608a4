"""`build`: what it writes down, that it repeats itself, and that it replaces an older bundle."""

import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import flowturbo_trt
from flowturbo_trt.bundle.manifest import Engine, Graph, Manifest
from flowturbo_trt.bundle.store import Bundle, sha256
from flowturbo_trt.export.build import build
from flowturbo_trt.export.graphs import export_one, exportables
from flowturbo_trt.export.options import BuildError, BuildOptions
from flowturbo_trt.export.sources import load_sources
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.table import SolverTable
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.tests.bundles import SCHEDULES

NETWORKS = ("predictor", "refiner", "predictor_conditioner", "refiner_conditioner", "decoder")


@pytest.fixture
def made(tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str]) -> Callable[..., Manifest]:
    """Give a function that builds the tiny model with changed options and returns the manifest."""
    return lambda **changes: build(replace(tiny_options, **changes), tmp_path / "bundle").manifest


def test_golden_model(golden_bundle: Path) -> None:
    model = Bundle.open(golden_bundle).manifest.model
    assert model.family == "sit"
    assert model.latent == (4, 8, 8)
    assert model.image == (16, 16)
    assert [(c.name, c.dtype, c.minimum, c.maximum) for c in model.conditions] == [("label", "int64", 0, 9)]
    assert (model.guidance.channels, model.guidance.halves, model.guidance.default) == (3, 2, 1.5)
    assert (model.config["depth"], model.config["hidden_size"], model.config["num_classes"]) == (3, 96, 10)
    assert model.refiner_config is not None
    assert model.refiner_config["depth"] == 1


def test_golden_programs(golden_bundle: Path) -> None:
    """The configuration's schedules in both variants, the first of them being the default."""
    manifest = Bundle.open(golden_bundle).manifest
    assert manifest.default_schedule == "H1P5R3"
    variants = ("guided", "unguided")
    assert manifest.programs == {s: {v: trace(Schedule.parse(s), v) for v in variants} for s in SCHEDULES}


def test_all_channels_guided(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert (manifest.model.guidance.channels, manifest.model.guidance.halves) == (2, 1)
    assert manifest.model.guidance.default == 2
    assert manifest.engine("predictor", "guided", "onnxruntime").outputs[0].shape == ("batch", 1, 2, 4, 4)
    assert manifest.engine("decoder", None, "onnxruntime").outputs[0].shape == ("batch", 8, 8, 3)


def test_provenance(golden_bundle: Path, golden_folder: Path) -> None:
    sources = Bundle.open(golden_bundle).manifest.sources
    assert sources["predictor"]["weights"] == "ema"
    assert sources["predictor"]["sha256"] == sha256(golden_folder / "predictor.pt")
    assert sources["refiner"]["sha256"] == sha256(golden_folder / "refiner.pt")
    assert set(sources) == {"predictor", "refiner", "decoder"}


def test_resolved_options(made: Callable[..., Manifest]) -> None:
    """All of them, defaults included, and of files the names only."""
    options = made(batches=(3, 1), precisions=("fp16",)).options
    assert options["batches"] == [3, 1]
    assert options["precisions"] == ["fp16"]
    assert options["variants"] == ["guided"]
    assert options["predictor"] == "predictor.safetensors"
    assert options["decoder"] == "autoencoder"
    assert options["targets"] == []
    assert options["model"] is None
    assert set(options) == set(BuildOptions.__dataclass_fields__)


def test_environment(tiny_bundle: Path) -> None:
    environment = Bundle.open(tiny_bundle).manifest.environment
    assert environment["flowturbo_trt"] == flowturbo_trt.__version__
    assert environment["python"] == platform.python_version()
    assert {"torch", "onnx"} <= set(environment)


def test_nothing_of_the_machine_goes_out(golden_bundle: Path, golden_folder: Path) -> None:
    text = (golden_bundle / "manifest.json").read_text(encoding="utf-8")
    assert str(golden_folder) not in text
    assert str(golden_bundle.parent) not in text
    assert str(Path.home()) not in text


def test_files_are_those_listed(golden_bundle: Path) -> None:
    bundle = Bundle.open(golden_bundle)
    bundle.check_all()
    found = {p.relative_to(golden_bundle).as_posix() for p in golden_bundle.rglob("*") if p.is_file()}
    assert found == {*bundle.manifest.files, "manifest.json"}
    items: tuple[Graph | Engine, ...] = (*bundle.manifest.graphs, *bundle.manifest.engines)
    needed = {file for item in items for file in item.files}
    assert needed == set(bundle.manifest.files)


def test_batches_are_sorted(made: Callable[..., Manifest]) -> None:
    assert made(batches=(8, 1, 3)).batches == (1, 3, 8)


@pytest.mark.parametrize("name", ["refiner", "decoder"])
def test_parts_that_may_be_left_out(made: Callable[..., Manifest], name: str) -> None:
    manifest = made(**{name: None}, schedules=("H2",))
    assert name not in {graph.network for graph in manifest.graphs}
    assert name not in {engine.network for engine in manifest.engines}
    assert (manifest.model.image is None) == (name == "decoder")
    assert (manifest.model.refiner_config is None) == (name == "refiner")


@pytest.mark.parametrize(("name", "expected"), [("refiner", "H8"), ("decoder", "H1P5R3")])
def test_schedule_when_none_is_given(made: Callable[..., Manifest], name: str, expected: str) -> None:
    manifest = made(**{name: None}, schedules=())
    assert list(manifest.programs) == [manifest.default_schedule] == [expected]


def test_half_precision_engines_lie_beside_the_graphs(made: Callable[..., Manifest]) -> None:
    manifest = made(precisions=("fp16",))
    engine = manifest.engine("predictor", "guided", "onnxruntime")
    assert (engine.precision, engine.file) == ("fp16", "engines/onnxruntime/predictor.guided.fp16.onnx")
    assert manifest.graphs[0].file == "onnx/predictor.guided.onnx"
    assert set(manifest.files) > {engine.file, manifest.graphs[0].file}


def test_progress(tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str]) -> None:
    told: list[tuple[str, int, int]] = []
    build(tiny_options, tmp_path / "bundle", lambda *what: told.append(what))
    assert told[0] == ("reading the checkpoints", 0, 1)
    work = told[1:]
    assert {total for _, _, total in work} == {100}
    assert [done for _, done, _ in work] == sorted(done for _, done, _ in work)
    assert [what for what, _, _ in work] == [
        *(f"exporting {network}" for network in NETWORKS),
        *(f"compiling for onnxruntime: {network}" for network in NETWORKS),
        "writing the manifest",
    ]
    assert work[0][1] == 0
    assert work[-1][1] == 100


def test_two_exports_are_the_same(tiny_options: BuildOptions, tiny_bundle: Path, tmp_path: Path) -> None:
    """Byte for byte."""
    item = next(exportables(load_sources(tiny_options), ("guided",), "hoisted"))
    (file,) = export_one(item, tmp_path)
    graph = Bundle.open(tiny_bundle).manifest.graphs[0]
    assert file.read_bytes() == (tiny_bundle / graph.file).read_bytes()


def test_two_manifests_are_the_same(
    tiny_options: BuildOptions, tiny_bundle: Path, tmp_path: Path, instant_export: list[str]
) -> None:
    """Nothing in them depends on where or when a bundle was built."""
    again = build(tiny_options, tmp_path / "elsewhere").path
    assert (again / "manifest.json").read_bytes() == (tiny_bundle / "manifest.json").read_bytes()


def test_older_bundle_is_replaced(
    tiny_options: BuildOptions, tiny_copy: Path, instant_export: list[str]
) -> None:
    bundle = build(replace(tiny_options, refiner=None, schedules=("H3",)), tiny_copy)
    assert list(Bundle.open(tiny_copy).manifest.programs) == ["H3"]
    assert sorted(path.name for path in (tiny_copy / "onnx").iterdir()) == [
        "decoder.onnx",
        "predictor.guided.onnx",
        "predictor_conditioner.onnx",
    ]
    names = {path.name for path in tiny_copy.parent.iterdir()}
    assert names == {bundle.path.name, f"{bundle.path.name}.build.log"}


def test_refiner_schedule_without_refiner(
    tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str]
) -> None:
    with pytest.raises(BuildError, match="schedule H1P1R1 has R steps, which need a refiner; give --refiner"):
        build(replace(tiny_options, refiner=None), tmp_path / "bundle")
    assert instant_export == []
    assert list(tmp_path.iterdir()) == []


def test_refiner_schedule_of_the_configuration(
    tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str]
) -> None:
    config = json.loads(tiny_options.config.read_text()) if tiny_options.config else {}
    (tmp_path / "config.json").write_text(json.dumps(config | {"schedules": ["H1", "H1R1"]}))
    options = replace(tiny_options, schedules=(), refiner=None, config=tmp_path / "config.json")
    with pytest.raises(BuildError, match="H1R1 has R steps"):
        build(options, tmp_path / "bundle")
    assert instant_export == []


def test_tables_come_with_schedules(
    tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str]
) -> None:
    """Their own, after those asked for, unless they are among them; options name them alone."""
    table = SolverTable("ours", (0, 0.4, 1), ((0.4,), (-0.2, 0.8)))
    other = replace(table, name="refined", refined=1)
    options = replace(tiny_options, schedules=("table:refined", "H2"), tables=(table, other))
    manifest = build(options, tmp_path / "bundle").manifest
    assert manifest.default_schedule == "table:refined"
    assert list(manifest.programs) == ["table:refined", "H2", "table:ours"]
    assert manifest.tables == (table, other)
    assert manifest.options["tables"] == ["ours", "refined"]
    programs = manifest.programs["table:ours"]
    assert programs == {variant: trace(Schedule.of_table(table), variant) for variant in options.variants}


def test_refined_table_without_a_refiner(tiny_options: BuildOptions, tmp_path: Path) -> None:
    table = SolverTable("refined", (0, 0.4, 1), ((0.4,), (-0.2, 0.8)), refined=1)
    with pytest.raises(BuildError, match="schedule table:refined has R steps, which need a refiner"):
        build(replace(tiny_options, refiner=None, schedules=("H1",), tables=(table,)), tmp_path / "bundle")
