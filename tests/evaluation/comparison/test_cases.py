"""Schedules on a bundle: told apart by what they do, refused together, counted as they run."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flowturbo_trt.bundle.amend import with_schedule
from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.comparison.cases import count_operations, distinct, find_cases
from flowturbo_trt.evaluation.comparison.errors import ComparisonError
from flowturbo_trt.evaluation.cost import engine_cost, program_cost
from flowturbo_trt.runtime.programs import find_program
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.table import SolverTable


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


@pytest.fixture
def unrefined(manifest: Manifest) -> Manifest:
    """As if built without a refiner."""
    engines = tuple(engine for engine in manifest.engines if engine.network != "refiner")
    programs = {"H2": manifest.programs["H2"]}
    return replace(manifest, engines=engines, programs=programs, default_schedule="H2")


def test_schedules_of_the_same_steps_are_one() -> None:
    texts = ["H8", "H4H4", "H1P0R2", "H1R2", "H8@0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,1", "H1R2:single", "H8"]
    kept, repeated = distinct(texts)
    assert kept == ["H8", "H1P0R2", texts[4], "H1R2:single"]
    assert repeated == ["H4H4", "H1R2", "H8"]


def test_all_that_cannot_run_are_named(unrefined: Manifest) -> None:
    texts = ["H2", "R2", "H1X", "H1R1", "H2@0,0.5,0.9"]
    with pytest.raises(ComparisonError) as caught:
        find_cases(unrefined, texts, "onnxruntime", 3, is_unguided=False)
    words = str(caught.value)
    assert words.startswith("4 of 5 schedules cannot run: R2: starts with R")
    assert ". H1X: is no schedule; expected groups" in words
    assert ". H1R1: the bundle has no guided refiner engine for onnxruntime" in words
    assert ". H2@0,0.5,0.9: runs from 0" in words
    assert "\n" not in words


def test_cases_are_of_the_variant_and_batch_that_run(golden_bundle: Path) -> None:
    manifest = Bundle.open(golden_bundle).manifest
    for is_unguided, variant in ((False, "guided"), (True, "unguided")):
        (case,) = find_cases(manifest, ["H1P1R1"], "onnxruntime", 2, is_unguided=is_unguided)
        assert case.variant == variant
        assert case.program == find_program(manifest, "H1P1R1", variant)
        assert {(e.network, e.variant) for e in case.engines} >= {("predictor", variant), ("decoder", None)}
        assert case.evaluations == {"predictor": 3, "refiner": 2}
        assert case.precision == "fp32"
    with pytest.raises(ComparisonError, match="H2: the bundle has no guided predictor engine"):
        find_cases(manifest, ["H2"], "onnxruntime", 5, is_unguided=False)


def test_tables_are_the_bundles_own(manifest: Manifest) -> None:
    table = SolverTable("ours", (0, 0.4, 1), ((0.4,), (-0.2, 0.8)))
    tabled = with_schedule(manifest, Schedule.of_table(table))
    (case,) = find_cases(tabled, ["table:ours"], "onnxruntime", 3, is_unguided=False)
    assert case.program == tabled.programs["table:ours"]["guided"]
    with pytest.raises(ComparisonError, match="table:none: there is no such table here"):
        find_cases(tabled, ["table:none"], "onnxruntime", 3, is_unguided=False)


def test_operations_are_those_of_the_program_and_the_decoder(manifest: Manifest) -> None:
    cases = find_cases(manifest, ["H2", "H1P1R1"], "onnxruntime", 3, is_unguided=False)
    found = count_operations(manifest, cases, "onnxruntime", 3)
    assert found.notes == ()
    for case in cases:
        expected = program_cost(manifest.model, case.program, 3, "hoisted", 0).flop_per_image / 1e9
        assert found.gflop[case.name] == pytest.approx(expected, rel=1e-12)
    decoder = engine_cost(manifest.model, "decoder", None, 3).flop / 3 / 1e9
    assert found.decoder_gflop == pytest.approx(decoder, rel=1e-12)
    assert 0 < decoder < min(found.gflop.values())


def test_operations_of_an_older_bundle_are_not_known(manifest: Manifest) -> None:
    cases = find_cases(manifest, ["H2"], "onnxruntime", 3, is_unguided=False)
    older = replace(manifest, model=replace(manifest.model, decoder_config=None))
    found = count_operations(older, cases, "onnxruntime", 3)
    assert (found.gflop, found.decoder_gflop) == ({}, None)
    assert found.notes[0].startswith("operations are not counted: the manifest does not tell the decoder's")


def test_operations_without_what_counts_them(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = find_cases(manifest, ["H2"], "onnxruntime", 3, is_unguided=False)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    (note,) = count_operations(manifest, cases, "onnxruntime", 3).notes
    assert note == "operations are not counted: it takes diffusers; pip install 'flowturbo_trt[export]'"
