"""The manifest's reader: what it gives back, and one test for each cause of rejection."""

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from flowturbo_trt.bundle.manifest import BundleError, Engine, Manifest
from flowturbo_trt.bundle.manifest_json import from_json, to_json
from flowturbo_trt.sampling.schedule import Schedule, ScheduleError
from flowturbo_trt.sampling.table import SolverTable
from flowturbo_trt.sampling.trace import trace

Data = dict[str, Any]


def read(data: Any) -> Manifest:
    return from_json(json.dumps(data))


def rejected(data: Any, *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        read(data)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_version_1_reads(data: Data) -> None:
    manifest = read(data)
    assert manifest.version == 1
    assert manifest.batches == (1, 4)
    assert manifest.model.latent == (2, 4, 6)
    assert manifest.model.image is None
    assert manifest.model.guidance.default == 3.0
    assert manifest.model.conditions[0].maximum == 9
    assert manifest.programs["E1"]["guided"] == trace(Schedule.parse("E1"), "guided")
    assert manifest.engines[0].inputs[0].shape == ("batch", 2, 4, 6)
    assert manifest.files["onnx/predictor.guided.onnx"].bytes == 23


def test_round_trip(data: Data) -> None:
    data["model"]["image"] = [16, 24]
    data["model"]["refiner_config"] = {"depth": 2, "nested": [1, {"a": None}]}
    manifest = read(data)
    programs = {"guided": trace(Schedule.parse("H1P5R3"), "guided")}
    manifest = dataclasses.replace(manifest, programs=manifest.programs | {"H1P5R3": programs})
    text = to_json(manifest)
    assert from_json(text) == manifest
    assert to_json(from_json(text)) == text


def test_unknown_keys_are_ignored(data: Data) -> None:
    expected = read(data)
    for owner in (
        data,
        data["model"],
        data["engines"][0],
        data["model"]["guidance"],
        *data["files"].values(),
    ):
        owner["added_later"] = {"by": ["a newer", "writer"]}
    assert read(data) == expected


@pytest.mark.parametrize("text", ["", "{", "manifest", '{"format": "flowturbo_trt bundle",}'])
def test_not_json(text: str) -> None:
    with pytest.raises(BundleError, match="not JSON"):
        from_json(text)


@pytest.mark.parametrize(
    "other", [[], "flowturbo_trt bundle", 1, None, {}, {"format": "other", "version": 1}]
)
def test_other_format(other: Any) -> None:
    rejected(other, "not that of a flowturbo_trt bundle")


@pytest.mark.parametrize("version", [3, 99])
def test_newer_version(data: Data, version: int) -> None:
    rejected(data | {"version": version}, f"version {version}", "up to 2", "upgrade flowturbo_trt")


def test_newer_version_is_refused_before_anything_else() -> None:
    rejected({"format": "flowturbo_trt bundle", "version": 3}, "upgrade")


@pytest.mark.parametrize("version", [None, "1", 1.0, True, 0, -1])
def test_version_that_is_none(data: Data, version: Any) -> None:
    rejected(data | {"version": version}, "version", str(version))


PARTS: dict[str, Callable[[Data], Data]] = {
    "manifest": lambda data: data,
    "manifest.model": lambda data: data["model"],
    "manifest.model.guidance": lambda data: data["model"]["guidance"],
    "manifest.model.conditions[0]": lambda data: data["model"]["conditions"][0],
    "manifest.graphs[0]": lambda data: data["graphs"][0],
    "manifest.engines[0]": lambda data: data["engines"][0],
    "manifest.engines[0].inputs[1]": lambda data: data["engines"][0]["inputs"][1],
    "manifest.files.onnx/predictor.guided.onnx": lambda data: next(iter(data["files"].values())),
}


@pytest.mark.parametrize("where", PARTS)
def test_missing_field(data: Data, where: str) -> None:
    """Every field of every part is mandatory, and its name and place are in the message."""
    for name in [name for name in PARTS[where](data) if name not in ("format", "version")]:
        damaged = json.loads(json.dumps(data))
        del PARTS[where](damaged)[name]
        rejected(damaged, f"{where}: {name!r} is missing")


@pytest.mark.parametrize(
    ("where", "field", "value", "expected"),
    [
        ("manifest", "batches", "1,4", "expected list"),
        ("manifest", "batches", {"1": 4}, "expected list"),
        ("manifest", "batches", [1, "4"], "batches[1] is '4', expected int"),
        ("manifest", "batches", [1, 4.0], "expected int"),
        ("manifest", "batches", [True], "batches[0] is True, expected int"),
        ("manifest", "batches", [0, 4], "at least 1"),
        ("manifest", "batches", [], "at least 1"),
        ("manifest", "licence", None, "expected str"),
        ("manifest", "programs", [], "expected dict"),
        ("manifest", "sources", {"predictor": {"file": 3}}, "sources.predictor.file is 3, expected str"),
        ("manifest.model", "latent", [2, 4], "has 2 items, expected 3"),
        ("manifest.model", "image", [16], "has 1 items, expected 2"),
        ("manifest.model", "image", [16, None], "expected int"),
        ("manifest.model", "refiner_config", 1, "expected dict"),
        ("manifest.model.guidance", "default", "1.5", "expected float"),
        ("manifest.model.guidance", "default", True, "expected float"),
        ("manifest.model.guidance", "halves", True, "expected int"),
        ("manifest.model.conditions[0]", "dtype", "float32", "expected 'int64'"),
        ("manifest.model.conditions[0]", "maximum", "9", "expected int"),
        ("manifest.engines[0]", "variant", 1, "expected str"),
        ("manifest.engines[0]", "data", "x", "expected list"),
        ("manifest.engines[0].inputs[1]", "shape", ["batch", True], "expected int or str"),
        ("manifest.engines[0].inputs[1]", "shape", [1.5], "expected int or str"),
        ("manifest.files.onnx/predictor.guided.onnx", "bytes", True, "expected int"),
        ("manifest.files.onnx/predictor.guided.onnx", "bytes", "23", "expected int"),
    ],
)
def test_wrong_type(data: Data, where: str, field: str, value: Any, expected: str) -> None:
    PARTS[where](data)[field] = value
    rejected(data, "manifest", field, expected)


def test_long_values_are_cut(data: Data) -> None:
    with pytest.raises(BundleError) as caught:
        read(data | {"licence": list(range(1000))})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("kind", ["graphs", "engines"])
@pytest.mark.parametrize("field", ["file", "data"])
def test_file_that_is_not_listed(data: Data, kind: str, field: str) -> None:
    data[kind][0][field] = "onnx/other.onnx" if field == "file" else ["onnx/other.onnx"]
    rejected(data, "predictor", "onnx/other.onnx", "not among the files")


def test_default_schedule_without_program(data: Data) -> None:
    rejected(data | {"default_schedule": "H8"}, "default schedule", "H8")


def test_tables(data: Data) -> None:
    """They are given back, and schedules may name them."""
    table = {"name": "ours", "times": [0, 0.25, 1], "weights": [[0.25], [-0.5, 1.25]], "refined": 0}
    manifest = read(data | {"tables": [table]})
    assert manifest.tables == (SolverTable("ours", (0, 0.25, 1), ((0.25,), (-0.5, 1.25))),)
    assert from_json(to_json(manifest)) == manifest
    assert manifest.schedule("table:ours").table == manifest.tables[0]
    assert manifest.schedule() == Schedule.parse("E1")
    with pytest.raises(ScheduleError, match=r"no such table here \(there are: ours\)"):
        manifest.schedule("table:other")
    assert read(data).tables == ()
    rejected(data | {"tables": [table, table]}, "share a name", "ours")
    rejected(data | {"tables": [table | {"times": [0, 1]}]}, "manifest.tables[0]", "2 steps and 2 times")
    rejected(data | {"tables": [table | {"weights": [[1], ["a", 1]]}]}, "manifest.tables[0].weights[1][0]")


def test_bad_program(data: Data) -> None:
    data["programs"]["E1"]["guided"]["instructions"][0]["op"] = "jump"
    rejected(data, "manifest.programs.E1.guided", "unknown instruction 'jump'")


def test_program_that_reads_what_is_not_written(data: Data) -> None:
    data["programs"]["E1"]["guided"]["instructions"][0]["state"] = 2
    rejected(data, "manifest.programs.E1.guided", "reads register 2 before it is written")


@pytest.mark.parametrize("programs", [{}, {"sideways": None}])
def test_program_of_no_known_variant(data: Data, programs: Data) -> None:
    """A schedule has a program for each variant that the bundle was built with."""
    program = data["programs"]["E1"]["guided"]
    data["programs"]["E1"] = dict.fromkeys(programs, program)
    rejected(data, "E1")


def test_programs_of_different_variants(data: Data) -> None:
    manifest = read(data)
    other = {v: trace(Schedule.parse("H2"), v) for v in ("guided", "unguided")}
    with pytest.raises(BundleError, match=r"H2 has programs for \['guided', 'unguided'\]"):
        dataclasses.replace(manifest, programs=manifest.programs | {"H2": other})


def test_program_under_another_variant(data: Data) -> None:
    data["programs"]["E1"] = {"unguided": data["programs"]["E1"]["guided"]}
    rejected(data, "E1", "unguided")


def test_engine_by_name(data: Data) -> None:
    manifest = read(data)
    engine = manifest.engine("predictor", "guided", "onnxruntime")
    assert isinstance(engine, Engine)
    assert engine.file == "onnx/predictor.guided.onnx"


@pytest.mark.parametrize(
    ("network", "variant", "backend"),
    [
        ("refiner", "guided", "onnxruntime"),
        ("predictor", "unguided", "onnxruntime"),
        ("predictor", "guided", "tensorrt"),
        ("decoder", None, "onnxruntime"),
    ],
)
def test_engine_that_is_not_there(data: Data, network: str, variant: str | None, backend: str) -> None:
    manifest = read(data)
    held = "predictor guided" if backend == "onnxruntime" else "none"
    with pytest.raises(BundleError, match=rf"no .*{network} engine for {backend} \(it has: {held}\)"):
        manifest.engine(network, variant, backend)


def test_errors_are_of_one_line(data: Data) -> None:
    data["licence"] = {"a\nb": "\n"}
    with pytest.raises(BundleError) as caught:
        read(data)
    assert re.fullmatch(r"[^\n]*", str(caught.value))
