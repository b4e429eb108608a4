"""Schedules that a finished bundle is given: programs for every variant, and nothing else changed."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from flowturbo_trt.bundle import amend
from flowturbo_trt.bundle.amend import check_writable, save_schedule, with_schedule
from flowturbo_trt.bundle.lock import held
from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.bundle.store import MANIFEST, Bundle
from flowturbo_trt.bundle.writing import LOCK, PARTIAL, check_place
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.table import SolverTable
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.tests.bundles import edit_manifest

TABLE = SolverTable("ours", (0, 0.4, 1), ((0.4,), (-0.2, 0.8)))
REFINED = replace(TABLE, name="refined", refined=1)


def test_table_comes_with_its_schedule(tiny_copy: Path) -> None:
    bundle = Bundle.open(tiny_copy)
    before = bundle.manifest
    schedule = Schedule.of_table(TABLE)
    opened = save_schedule(bundle, schedule).manifest
    assert opened.tables == (TABLE,)
    assert opened.schedule("table:ours") == schedule
    variants = before.programs[before.default_schedule].keys()
    assert opened.programs["table:ours"] == {variant: trace(schedule, variant) for variant in variants}
    assert replace(opened, tables=(), programs=before.programs) == before
    assert opened.default_schedule == before.default_schedule


def test_new_default(tiny_copy: Path) -> None:
    bundle = Bundle.open(tiny_copy)
    assert with_schedule(bundle.manifest, Schedule.parse("AB2x4"), default=True).default_schedule == "AB2x4"


def test_table_that_is_there_already(golden_bundle: Path) -> None:
    """May be given other schedules; another of its name may not come."""
    manifest = with_schedule(Bundle.open(golden_bundle).manifest, Schedule.of_table(TABLE))
    again = with_schedule(manifest, Schedule.of_table(TABLE, (0.2, 0.8)))
    assert again.tables == (TABLE,)
    assert {"table:ours", "table:ours:guided=0.2..0.8"} <= set(again.programs)
    other = replace(TABLE, times=(0, 0.5, 1))
    with pytest.raises(BundleError, match="has a table ours already; give another name"):
        with_schedule(manifest, Schedule.of_table(other))


def test_network_that_is_not_there(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    without = replace(manifest, engines=tuple(e for e in manifest.engines if e.network != "refiner"))
    with pytest.raises(
        BundleError, match="table:refined: needs the guided refiner, which the bundle has not"
    ):
        with_schedule(without, Schedule.of_table(REFINED))


def test_what_was_added_meanwhile_stays(tiny_copy: Path) -> None:
    bundle = Bundle.open(tiny_copy)
    save_schedule(bundle, Schedule.parse("AB2x3"))
    assert {"AB2x3", "AB2x4"} <= set(save_schedule(bundle, Schedule.parse("AB2x4")).manifest.programs)


def test_bundle_that_was_rebuilt_meanwhile(tiny_copy: Path) -> None:
    bundle = Bundle.open(tiny_copy)
    name = next(iter(bundle.manifest.files))
    edit_manifest(tiny_copy, lambda manifest: manifest["files"][name].update(sha256="0" * 64))
    with pytest.raises(BundleError, match="was rebuilt meanwhile; calibrate what is there now"):
        save_schedule(bundle, Schedule.parse("AB2x3"))


def test_one_at_a_time(tiny_copy: Path) -> None:
    bundle = Bundle.open(tiny_copy)
    with (
        held(tiny_copy / LOCK),
        pytest.raises(BundleError, match="is being changed by another process; try again"),
    ):
        save_schedule(bundle, Schedule.parse("AB2x3"))


@pytest.mark.parametrize("name", [LOCK, PARTIAL])
def test_what_a_sudden_end_leaves_is_in_nobodys_way(tiny_copy: Path, name: str) -> None:
    (tiny_copy / name).write_text("{")
    assert "AB2x3" in save_schedule(Bundle.open(tiny_copy), Schedule.parse("AB2x3")).manifest.programs
    assert not (tiny_copy / name).exists()
    (tiny_copy / name).write_text("{")
    assert check_place(tiny_copy) == tiny_copy


def test_interrupted_exchange_leaves_the_manifest(tiny_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    bundle = Bundle.open(tiny_copy)
    before = sorted(path.name for path in tiny_copy.iterdir())
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(BundleError, match="cannot be written \\(No space left on device\\)"):
        save_schedule(bundle, Schedule.of_table(TABLE))
    assert Bundle.open(tiny_copy).manifest == bundle.manifest
    assert sorted(path.name for path in tiny_copy.iterdir()) == before
    assert (tiny_copy / MANIFEST).is_file()


def test_folder_that_may_not_be_written_to(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(Bundle.open(tiny_bundle))
    monkeypatch.setattr(amend.os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(BundleError, match="may not be written to; write to a file, or copy the bundle"):
        check_writable(Bundle.open(tiny_bundle))
