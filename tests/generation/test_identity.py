"""What tells bundles apart that images are made from."""

from dataclasses import replace
from pathlib import Path

from flowturbo_trt.bundle.amend import with_schedule
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.generation.identity import identity
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.table import SolverTable

TABLE = SolverTable("ours", (0, 0.4, 1), ((0.4,), (-0.2, 0.8)))


def test_other_schedules_do_not_matter(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    tabled = with_schedule(manifest, Schedule.of_table(TABLE), default=True)
    assert identity(tabled, "E2") == identity(manifest, "E2")


def test_files_and_the_table_do(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    name, record = next(iter(manifest.files.items()))
    altered = {**manifest.files, name: replace(record, sha256="0" * 64)}
    assert identity(replace(manifest, files=altered), "E2") != identity(manifest, "E2")
    one, other = (
        with_schedule(manifest, Schedule.of_table(replace(TABLE, times=(0, t, 1)))) for t in (0.4, 0.5)
    )
    assert identity(one, "table:ours") != identity(other, "table:ours")
    assert identity(one, "E2") == identity(other, "E2")
