"""Solver tables in files of their own: what `calibrate solver --out` writes and `build --table` reads."""

import json
from pathlib import Path

from flowturbo_trt.bundle.manifest_json import read_value
from flowturbo_trt.sampling.table import SolverTable, TableError


def load_table(path: Path) -> SolverTable:
    """Read the `table` of a JSON document; raises TableError, or BundleError where it is not one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TableError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(document, dict) or "table" not in document:
        raise TableError(f"{path}: holds no solver table; give what `calibrate solver --out` wrote")
    table: SolverTable = read_value(SolverTable, document["table"], f"{path}: table")
    return table
