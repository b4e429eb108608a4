"""Schedules that a finished bundle is given: programs for every variant, and nothing else changed."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from flowturbo_trt.bundle import amend
from flowturbo_trt.bundle.amend import check_writable, rewrite_manifest, with_schedule
from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.bundle.store import MANIFEST, Bundle
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.table import SolverTable
from flowturbo_trt.sampling.trace import trace

TABLE = SolverTable("ours", (0, 0.4, 1), ((0.4,), (-0.2, 0.8)))
REFINED = replace(TABLE, name="refined", refined=1)


def test_table_comes_with_its_schedule(tiny_copy: Path) -> None:
    bundle = Bundle.open(tiny_copy)
    before = bundle.manifest
    schedule = Schedule.of_table(TABLE)
    opened = rewrite_manifest(bundle, with_schedule(before, schedule)).manifest
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


def test_interrupted_exchange_leaves_the_manifest(tiny_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    bundle = Bundle.open(tiny_copy)
    before = sorted(path.name for path in tiny_copy.iterdir())
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(BundleError, match="cannot be written \\(No space left on device\\)"):
        rewrite_manifest(bundle, with_schedule(bundle.manifest, Schedule.of_table(TABLE)))
    assert Bundle.open(tiny_copy).manifest == bundle.manifest
    assert sorted(path.name for path in tiny_copy.iterdir()) == before
    assert (tiny_copy / MANIFEST).is_file()


def test_folder_that_may_not_be_written_to(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(Bundle.open(tiny_bundle))
    monkeypatch.setattr(amend.os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(BundleError, match="may not be written to; write to a file, or copy the bundle"):
        check_writable(Bundle.open(tiny_bundle))
