"""Giving a finished bundle more schedules: its manifest is exchanged in one step, its other files stay."""

import os
from dataclasses import replace

from flowturbo_trt.bundle.manifest import BundleError, Manifest
from flowturbo_trt.bundle.manifest_json import to_json
from flowturbo_trt.bundle.store import MANIFEST, Bundle
from flowturbo_trt.bundle.writing import sync, unwritable
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
    variants = manifest.programs[manifest.default_schedule].keys()
    text = str(schedule)
    programs = {variant: trace(schedule, variant) for variant in variants}
    held = {(engine.network, engine.variant) for engine in manifest.engines}
    if missing := {e for program in programs.values() for e in program.evaluations()} - held:
        network, variant = min(missing)
        raise BundleError(
            f"{text}: needs the {variant} {network}, which the bundle has not; rebuild it with one"
        )
    return replace(
        manifest,
        tables=tables,
        programs={**manifest.programs, text: programs},
        default_schedule=text if default else manifest.default_schedule,
    )


def check_writable(bundle: Bundle) -> None:
    """Make sure that a bundle's manifest can be exchanged, before long work for it; raises BundleError."""
    if not os.access(bundle.path, os.W_OK):
        raise BundleError(f"{bundle.path}: may not be written to; write to a file, or copy the bundle")


def rewrite_manifest(bundle: Bundle, manifest: Manifest) -> Bundle:
    """Write a manifest in place of a bundle's own, and open the bundle anew; raises BundleError."""
    path = bundle.path / MANIFEST
    # Beside the manifest, where a note does no harm (FORMAT.md) if it is left by a sudden end.
    partial = path.with_name(f"{MANIFEST}.partial")
    try:
        partial.write_text(to_json(manifest), encoding="utf-8")
        sync([partial])
        os.replace(partial, path)
        sync([path])
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise unwritable(bundle.path, error) from error
    return Bundle.open(bundle.path)
