"""Warm-up: every program at every batch size, with values that the model takes."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import read_manifest
from flowturbo_trt.serving.triton.settings import ModelSettings
from flowturbo_trt.serving.triton.warmup import Warmup, make_warmup


@pytest.fixture(scope="module")
def manifest(golden_bundle: Path) -> Manifest:
    return read_manifest(golden_bundle)


def rows(warmup: Warmup) -> set[tuple[int, float, str | None]]:
    """Return batch size, guidance and schedule of all samples, as a server reads their files."""
    found = set()
    for sample in warmup.samples:
        content = {
            name: warmup.files[given.input_data_file]
            for name, given in sample.inputs.items()
            if given.input_data_file
        }
        (guidance,) = struct.unpack("<f", content["guidance"])
        schedule = None
        if "schedule" in content:
            (length,) = struct.unpack("<I", content["schedule"][:4])
            schedule = content["schedule"][4:].decode()
            assert length == len(content["schedule"]) - 4
        found.add((sample.batch_size, guidance, schedule))
    assert len(found) == len(warmup.samples)
    return found


def settings(*schedules: str) -> ModelSettings:
    return ModelSettings("onnxruntime", "cpu", schedules)


def test_every_variant_at_every_batch_size(manifest: Manifest) -> None:
    warmup = make_warmup(manifest, settings("H1P5R3"), manifest.batches)
    default = manifest.model.guidance.default
    assert rows(warmup) == {(b, g, None) for b in (1, 2) for g in (default, 1.0)}
    assert default != 1


def test_every_schedule_that_may_be_asked_for(manifest: Manifest) -> None:
    warmup = make_warmup(manifest, settings("H1P5R3", "H2"), (1,))
    default = manifest.model.guidance.default
    assert rows(warmup) == {(1, g, s) for g in (default, 1.0) for s in ("H1P5R3", "H2")}


def test_the_guided_variant_where_the_default_is_none(manifest: Manifest) -> None:
    guidance = replace(manifest.model.guidance, default=1.0)
    unguided = replace(manifest, model=replace(manifest.model, guidance=guidance))
    assert {g for _, g, _ in rows(make_warmup(unguided, settings("H2"), (1,)))} == {1.0, 2.0}


def test_labels_are_in_range(manifest: Manifest) -> None:
    """Zero is not one of every model's."""
    conditions = tuple(replace(c, minimum=7, maximum=9) for c in manifest.model.conditions)
    shifted = replace(manifest, model=replace(manifest.model, conditions=conditions))
    for sample in make_warmup(shifted, settings("H2"), (1,)).samples:
        (label,) = struct.unpack(
            "<q",
            make_warmup(shifted, settings("H2"), (1,)).files[sample.inputs["label"].input_data_file],
        )
        assert label == 7


def test_other_content_has_another_name(manifest: Manifest) -> None:
    """A server may still read the older config when the newer one's files are there."""
    one = make_warmup(manifest, settings("H1", "H2"), (1,)).files
    other = make_warmup(manifest, settings("H1", "H3"), (1,)).files
    assert all(one[name] == other[name] for name in one.keys() & other.keys())
    assert len(one.keys() - other.keys()) == 1
