"""Call sites and programs, known before anything runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.recording.call_sites import find_sites, program_digests
from flowturbo_trt.calibration.recording.trajectories import Recording
from flowturbo_trt.sampling.schedule import ScheduleError


def test_as_they_are_recorded(
    golden_bundle: Path, golden_recording: Recording, tiny_bundle: Path, tiny_recording: Recording
) -> None:
    for path, recording in ((golden_bundle, golden_recording), (tiny_bundle, tiny_recording)):
        manifest = Bundle.open(path).manifest
        assert find_sites(manifest, recording.schedules, recording.variant) == recording.sites


def test_without_guidance(golden_bundle: Path) -> None:
    partly = "H2:guided=0.2..0.6"
    sites = find_sites(Bundle.open(golden_bundle).manifest, ("H1", "H1", partly), "unguided")
    assert {site.variant for site in sites} == {"unguided"}
    assert [(site.schedule, site.index) for site in sites][:3] == [
        ("H1", 0),
        ("H1", 1),
        ("H2:guided=0.2..0.6", 0),
    ]


def test_digests(golden_bundle: Path) -> None:
    """One for each program, the same whenever it is made; none for what is no schedule."""
    manifest = Bundle.open(golden_bundle).manifest
    schedules = ("H2", "H2:guided=0.2..0.6", "H3")
    found = program_digests(manifest, schedules, "guided")
    assert tuple(found) == schedules
    assert len(set(found.values())) == 3
    assert program_digests(manifest, schedules, "guided") == found
    with pytest.raises(ScheduleError):
        program_digests(manifest, ("table:none",), "guided")


def test_recorded_with_another_program(tiny_bundle: Path, tiny_recording: Recording) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert tiny_recording.programs == program_digests(manifest, ("H1P1R1",), "guided")
    other = replace(tiny_recording, programs={"H1P1R1": "0" * 64})
    with pytest.raises(CalibrationError, match="was recorded with another H1P1R1 than the bundle's; record"):
        other.of(manifest)
