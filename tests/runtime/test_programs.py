"""Which program a request runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.programs import choose_variant, find_program
from flowturbo_trt.runtime.request import RequestError
from flowturbo_trt.sampling.schedule import Schedule, ScheduleError
from flowturbo_trt.sampling.table import SolverTable
from flowturbo_trt.sampling.trace import trace


@pytest.fixture
def manifest(golden_bundle: Path) -> Manifest:
    return Bundle.open(golden_bundle).manifest


def only(manifest: Manifest, variant: str) -> Manifest:
    """The manifest of a bundle built for one variant."""
    programs = {text: {variant: given[variant]} for text, given in manifest.programs.items()}
    return replace(manifest, programs=programs)


def test_variant(manifest: Manifest) -> None:
    assert choose_variant(manifest, is_unguided=False) == "guided"
    assert choose_variant(manifest, is_unguided=True) == "unguided"
    assert choose_variant(only(manifest, "guided"), is_unguided=True) == "guided"
    assert choose_variant(only(manifest, "unguided"), is_unguided=True) == "unguided"
    with pytest.raises(RequestError, match="unguided engines only; use guidance 1, or build it with"):
        choose_variant(only(manifest, "unguided"), is_unguided=False)


def test_program_of_the_bundle(manifest: Manifest) -> None:
    text = manifest.default_schedule
    held = manifest.programs[text]["guided"]
    assert find_program(manifest, None, "guided") is held
    assert find_program(manifest, text, "guided") is held
    assert find_program(manifest, Schedule.parse(text), "guided") is held


def test_program_of_another_schedule(manifest: Manifest) -> None:
    program = find_program(manifest, "E3", "unguided")
    assert program.evaluations() == {("predictor", "unguided"): 3}
    assert find_program(manifest, "E3", "unguided") is program


def test_program_of_a_table(manifest: Manifest) -> None:
    """As text where the bundle has the table; as a schedule also another one of the same name."""
    held = SolverTable("ours", (0, 0.25, 1), ((0.25,), (-0.5, 1.25)))
    other = replace(held, weights=((0.25,), (-0.25, 1.0)))
    with pytest.raises(ScheduleError, match="no such table here"):
        find_program(manifest, "table:ours", "guided")
    programs = {v: trace(Schedule.of_table(held), v) for v in ("guided", "unguided")}
    richer = replace(manifest, tables=(held,), programs={**manifest.programs, "table:ours": programs})
    for given in ("table:ours", Schedule.of_table(held)):
        assert find_program(richer, given, "guided") is programs["guided"]
    assert find_program(replace(manifest, tables=(held,)), "table:ours", "guided") == programs["guided"]
    found = find_program(richer, Schedule.of_table(other), "guided")
    assert found == trace(Schedule.of_table(other), "guided") != programs["guided"]
    guided = find_program(richer, "table:ours:guided=0.2..1", "guided")
    assert guided.evaluations() == {("predictor", "unguided"): 1, ("predictor", "guided"): 1}


def test_program_of_a_guidance_interval(manifest: Manifest) -> None:
    """It needs engines of both variants, for requests with guidance only."""
    text = "H4:guided=0.2..0.6"
    mixed = {("predictor", "guided"): 4, ("predictor", "unguided"): 4}
    assert find_program(manifest, text, "guided").evaluations() == mixed
    assert find_program(manifest, text, "unguided").evaluations() == {("predictor", "unguided"): 8}
    unguided = only(manifest, "unguided")
    assert find_program(unguided, text, "unguided") is find_program(manifest, text, "unguided")
    guided = only(manifest, "guided")
    with pytest.raises(
        ScheduleError, match=rf"^{text}: needs unguided engines; build .* --variant unguided$"
    ):
        find_program(guided, text, "guided")
    # With all its times in the interval it is none.
    assert find_program(guided, "H4:guided=0..1", "guided").evaluations() == {("predictor", "guided"): 8}


@pytest.mark.parametrize(
    ("schedule", "words"),
    [("H2@0,0.5,0.9", "runs from 0.0 to 0.9; generation needs 0 to 1"), ("nothing", "is no schedule")],
)
def test_schedules_that_cannot_generate(manifest: Manifest, schedule: str, words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        find_program(manifest, schedule, "guided")
