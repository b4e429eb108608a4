"""Bundles with hoisted and with fused conditioning, and schedules that guide some of the time."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.export.build import build
from flowturbo_trt.export.graphs import Exportable
from flowturbo_trt.export.options import BuildError, BuildOptions
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace

INTERVAL = "H1P5R3:guided=0.1..0.8"


@pytest.fixture
def golden_made(
    golden_options: BuildOptions, golden_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Manifest]:
    """Give a function that builds the golden model with changed options; graphs are taken from its bundle."""

    def export_one(item: Exportable, folder: Path) -> list[Path]:
        return [Path(shutil.copy(golden_bundle / "onnx" / item.file, folder))]

    monkeypatch.setattr("flowturbo_trt.export.build.export_one", export_one)
    return lambda **changes: build(replace(golden_options, **changes), tmp_path / "bundle").manifest


def test_hoisted_is_the_default(golden_bundle: Path) -> None:
    manifest = Bundle.open(golden_bundle).manifest
    assert manifest.options["conditioning"] == BuildOptions.conditioning == "hoisted"
    assert manifest.version == 2
    assert [(c.name, c.maximum, c.null) for c in manifest.model.conditions] == [("label", 9, 10)]
    for item in (*manifest.graphs, *manifest.engines):
        assert item.is_hoisted == (item.network in ("predictor", "refiner"))
        assert item.is_conditioner == item.network.endswith("_conditioner")


def test_variants_share_a_conditioner(golden_bundle: Path) -> None:
    manifest = Bundle.open(golden_bundle).manifest
    for backend in {engine.backend for engine in manifest.engines}:
        names = [engine.name for engine in manifest.engines if engine.backend == backend]
        assert sorted(names) == [
            "decoder",
            "predictor guided",
            "predictor unguided",
            "predictor_conditioner",
            "refiner guided",
            "refiner unguided",
            "refiner_conditioner",
        ]
        # It is not of the batch sizes, which say how many images there are.
        assert manifest.engine("predictor_conditioner", None, backend).batches == (64,)
        assert manifest.engine("predictor", "guided", backend).batches == (1, 2)
    assert manifest.batches == (1, 2)


def test_fused(golden_fused_bundle: Path) -> None:
    manifest = Bundle.open(golden_fused_bundle).manifest
    assert manifest.options["conditioning"] == "fused"
    assert not any(item.is_hoisted or item.is_conditioner for item in (*manifest.graphs, *manifest.engines))
    assert {graph.network for graph in manifest.graphs} == {"predictor", "refiner", "decoder"}
    assert manifest.model.conditions[0].null == 10


def test_other_conditioning_is_made_anew(
    tiny_options: BuildOptions, tiny_copy: Path, instant_export: list[str]
) -> None:
    """A trunk must not be taken for a whole network: only the decoder is the same piece."""
    build(tiny_options, tiny_copy)
    assert instant_export == []
    told: list[str] = []
    build(replace(tiny_options, conditioning="fused"), tiny_copy, say=told.append)
    assert instant_export == ["predictor.guided.onnx", "refiner.guided.onnx"]
    assert "onnx predictor guided: made anew, for interface, shape" in told
    assert f"onnx decoder: reused, finished in {tiny_copy}" in told
    assert sorted(path.name for path in (tiny_copy / "onnx").iterdir()) == [
        "decoder.onnx",
        "predictor.guided.onnx",
        "refiner.guided.onnx",
    ]


def test_conditioner_is_reused_for_another_variant(
    tiny_options: BuildOptions, tiny_copy: Path, instant_export: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[str] = []

    def export_one(item: Exportable, folder: Path) -> list[Path]:
        exported.append(item.file)
        return [Path(shutil.copy(tiny_copy / "onnx" / item.file.replace("unguided", "guided"), folder))]

    monkeypatch.setattr("flowturbo_trt.export.build.export_one", export_one)
    build(replace(tiny_options, variants=("guided", "unguided")), tiny_copy)
    assert exported == ["predictor.unguided.onnx", "refiner.unguided.onnx"]


def test_interval_of_guidance(golden_made: Callable[..., Manifest]) -> None:
    """The program of guided requests mixes variants, the one of requests without guidance does not."""
    manifest = golden_made(schedules=(INTERVAL, "H2"))
    assert manifest.default_schedule == INTERVAL
    schedule = Schedule.parse(INTERVAL)
    assert manifest.programs[INTERVAL] == {v: trace(schedule, v) for v in ("guided", "unguided")}
    found = manifest.programs[INTERVAL]["guided"].evaluations()
    assert {variant for _, variant in found} == {"guided", "unguided"}
    assert {v for _, v in manifest.programs[INTERVAL]["unguided"].evaluations()} == {"unguided"}


def test_interval_of_the_configuration_needs_both_variants(
    tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str]
) -> None:
    """Options are checked before a configuration is read, which may name schedules as well."""
    assert tiny_options.config is not None
    text = tiny_options.config.read_text().replace("{", '{"schedules": ["H2:guided=0..0.5"], ', 1)
    (tmp_path / "config.json").write_text(text)
    options = replace(tiny_options, schedules=(), config=tmp_path / "config.json")
    with pytest.raises(BuildError, match=r"H2:guided=0\.\.0\.5 is guided some of the time; add --variant"):
        build(options, tmp_path / "bundle")
    assert instant_export == []
