"""Giving a finished bundle more schedules: its manifest is exchanged in one step, its other files stay."""

import os
from dataclasses import replace
from pathlib import Path

from flowturbo_trt.bundle.lock import held
from flowturbo_trt.bundle.manifest import BundleError, Manifest
from flowturbo_trt.bundle.manifest_json import to_json
from flowturbo_trt.bundle.store import MANIFEST, Bundle
from flowturbo_trt.bundle.writing import LOCK, PARTIAL, sync, unwritable
from flowturbo_trt.sampling.program import Program
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace


def with_schedule(manifest: Manifest, schedule: Schedule, *, default: bool = False) -> Manifest:
    """Return the manifest with a schedule, its table if it has one, and its programs.

    Raises BundleError where another table has the name, or the networks for it are missing.
    """
    tables = manifest.tables
    if schedule.table is not None and schedule.table not in tables:
        if schedule.table.name in {table.name for table in tables}:
            raise BundleError(f"the bundle has a table {schedule.table.name} already; give another name")
        tables = (*tables, schedule.table)
    text = str(schedule)
    return replace(
        manifest,
        tables=tables,
        programs={**manifest.programs, text: lower(manifest, schedule)},
        default_schedule=text if default else manifest.default_schedule,
    )


def lower(manifest: Manifest, schedule: Schedule) -> dict[str, Program]:
    """Return a schedule's program for every variant; raises BundleError where the networks are missing."""
    variants = manifest.programs[manifest.default_schedule].keys()
    programs = {variant: trace(schedule, variant) for variant in variants}
    built = {(engine.network, engine.variant) for engine in manifest.engines}
    if missing := {e for program in programs.values() for e in program.evaluations()} - built:
        network, variant = min(missing)
        raise BundleError(
            f"{schedule}: needs the {variant} {network}, which the bundle has not; rebuild it with one"
        )
    return programs


def check_writable(bundle: Bundle) -> None:
    """Make sure that a bundle's manifest can be exchanged, before long work for it; raises BundleError."""
    if not os.access(bundle.path, os.W_OK):
        raise BundleError(f"{bundle.path}: may not be written to; write to a file, or copy the bundle")


def save_schedule(bundle: Bundle, schedule: Schedule, *, default: bool = False) -> Bundle:
    """Give a bundle on the disk a schedule, as `with_schedule` does, and open it anew.

    What was added to it since it was opened stays. Raises BundleError where it was rebuilt, which another
    schedule may be right for, and where it cannot be written.
    """
    try:
        with held(bundle.path / LOCK) as is_ours:
            if not is_ours:
                raise BundleError(f"{bundle.path}: is being changed by another process; try again")
            found = Bundle.open(bundle.path)
            if found.manifest.files != bundle.manifest.files:
                raise BundleError(f"{bundle.path}: was rebuilt meanwhile; calibrate what is there now")
            _rewrite(found.path, with_schedule(found.manifest, schedule, default=default))
    except OSError as error:
        raise unwritable(bundle.path, error) from error
    return Bundle.open(bundle.path)


def _rewrite(folder: Path, manifest: Manifest) -> None:
    """Exchange a manifest in one step."""
    partial = folder / PARTIAL
    try:
        partial.write_text(to_json(manifest), encoding="utf-8")
        sync([partial])
        os.replace(partial, folder / MANIFEST)
        sync([folder / MANIFEST])
    except OSError:
        partial.unlink(missing_ok=True)
        raise
