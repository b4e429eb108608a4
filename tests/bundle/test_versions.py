"""Versions of the format: what version 2 added, and that bundles of version 1 read and run as they are."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.manifest import BundleError, Condition, conditioner_of
from flowturbo_trt.bundle.manifest_json import from_json, to_json
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.tests.bundles import changed_copy, edit_manifest, latents

Data = dict[str, Any]
VARIANTS = ("guided", "unguided")
MIXED = "H1P2R1:guided=0.2..0.6"


def downgrade(data: Data) -> None:
    """Make of a fused bundle's manifest what a writer of version 1 would have written."""
    data["version"] = 1
    for condition in data["model"]["conditions"]:
        del condition["null"]
    del data["options"]["conditioning"]


@pytest.fixture
def version1(golden_fused_bundle: Path, tmp_path: Path) -> Path:
    return changed_copy(golden_fused_bundle, tmp_path, downgrade)


def test_version_1_is_read(version1: Path, golden_fused_bundle: Path) -> None:
    old, new = (Bundle.open(path).manifest for path in (version1, golden_fused_bundle))
    assert (old.version, new.version) == (1, 2)
    assert old.model.conditions == (Condition("label", "int64", 0, 9, null=None),)
    assert new.model.conditions == (Condition("label", "int64", 0, 9, null=10),)
    # All else is what it was.
    model = dataclasses.replace(new.model, conditions=old.model.conditions)
    assert old == dataclasses.replace(new, version=1, model=model, options=old.options)
    assert from_json(to_json(old)) == old


@pytest.mark.parametrize("guidance", [1.5, 1])
@pytest.mark.parametrize("schedule", ["H1P5R3", MIXED])
def test_version_1_runs(
    version1: Path, golden_fused_pipeline: Pipeline, schedule: str, guidance: float
) -> None:
    """Also schedules that no writer of version 1 knew: only engines are taken from the bundle."""
    request: dict[str, Any] = {
        "labels": [1, 9, 0],
        "schedule": schedule,
        "seeds": [4, 5, 6],
        "guidance": guidance,
    }
    found = Pipeline.load(version1, threads=1)(**request)
    np.testing.assert_array_equal(found, golden_fused_pipeline(**request))


def test_conditioners_are_known_by_name_and_inputs(golden_bundle: Path, golden_fused_bundle: Path) -> None:
    manifest = Bundle.open(golden_bundle).manifest
    predictor = manifest.engine("predictor", "guided", "onnxruntime")
    conditioner = manifest.engine(conditioner_of("predictor"), None, "onnxruntime")
    decoder = manifest.engine("decoder", None, "onnxruntime")
    assert [(e.is_hoisted, e.is_conditioner) for e in (predictor, conditioner, decoder)] == [
        (True, False),
        (False, True),
        (False, False),
    ]
    assert conditioner.name == "predictor_conditioner"
    fused = Bundle.open(golden_fused_bundle).manifest.engine("predictor", "guided", "onnxruntime")
    assert not fused.is_hoisted


def test_null_is_given_back(data: Data) -> None:
    data["model"]["conditions"][0]["null"] = 10
    manifest = from_json(json.dumps(data))
    assert manifest.model.conditions[0].null == 10
    assert json.loads(to_json(manifest))["model"]["conditions"][0]["null"] == 10


@pytest.mark.parametrize("null", ["10", 1.5, True])
def test_null_of_a_wrong_type(data: Data, null: Any) -> None:
    data["model"]["conditions"][0]["null"] = null
    with pytest.raises(BundleError, match=r"conditions\[0\]\.null is .*, expected int"):
        from_json(json.dumps(data))


def test_hoisted_bundle_that_does_not_say_what_stands_for_none(tiny_copy: Path) -> None:
    """Guessing it would give images of another guidance."""
    edit_manifest(tiny_copy, lambda data: data["model"]["conditions"][0].update(null=None))
    with pytest.raises(BundleError, match="does not say which label stands for none; rebuild the bundle"):
        latents(Pipeline.load(tiny_copy, threads=1), [0])


def test_hoisted_bundle_without_its_conditioner(tiny_copy: Path) -> None:
    def remove(data: Data) -> None:
        data["engines"] = [e for e in data["engines"] if e["network"] != "predictor_conditioner"]

    edit_manifest(tiny_copy, remove)
    with pytest.raises(BundleError, match="no predictor_conditioner engine for onnxruntime"):
        Pipeline.load(tiny_copy, threads=1)


def test_variants_of_which_some_are_hoisted(
    golden_bundle: Path, golden_fused_bundle: Path, tmp_path: Path
) -> None:
    """Of two builds put together: nothing says for which of them the conditioner is."""
    copy = Path(shutil.copytree(golden_bundle, tmp_path / "copy"))
    name = "onnx/predictor.unguided.onnx"
    shutil.copy(golden_fused_bundle / name, copy / name)
    fused = json.loads((golden_fused_bundle / "manifest.json").read_text(encoding="utf-8"))

    def change(data: Data) -> None:
        data["files"][name] = fused["files"][name]
        (engine,) = (e for e in fused["engines"] if e["file"] == name)
        data["engines"] = [engine if e["file"] == name else e for e in data["engines"]]

    edit_manifest(copy, change)
    pipeline = Pipeline.load(copy, threads=1)
    with pytest.raises(BundleError, match="predictor: some of its variants have their conditioning hoisted"):
        latents(pipeline, [0], MIXED, guidance=1.5)


def test_programs_may_mix_the_variants_that_are_built(golden_bundle: Path) -> None:
    manifest = Bundle.open(golden_bundle).manifest
    mixed = {variant: trace(Schedule.parse(MIXED), variant) for variant in VARIANTS}
    assert {variant for _, variant in mixed["guided"].evaluations()} == set(VARIANTS)
    manifest = dataclasses.replace(manifest, programs=manifest.programs | {MIXED: mixed})
    assert from_json(to_json(manifest)).programs[MIXED] == mixed


def test_programs_may_not_evaluate_what_is_not_built(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    mixed = {"guided": trace(Schedule.parse(MIXED), "guided")}
    words = r"programs for \['guided'\], evaluating \['guided', 'unguided'\]; expected .* \['guided'\]"
    with pytest.raises(BundleError, match=words):
        dataclasses.replace(manifest, programs=manifest.programs | {MIXED: mixed})
