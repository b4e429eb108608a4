"""Result files that are written in slices: a machine may be at hand for minutes only."""

import json
from pathlib import Path
from typing import Any

from flowturbo_trt.bundle.environment import versions
from flowturbo_trt.evaluation.report import machine
from flowturbo_trt.sampling.errors import FlowTurboError


class ResultsError(FlowTurboError):
    """A result file that cannot be gone on with."""


def open_results(path: Path, gpu: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a result file holds so far, or a new one; raises ResultsError for another machine's.

    Figures of different machines or versions do not belong into one table. Without a GPU it is a dry run.
    """
    here = {"machine": machine(), "versions": versions(), "device": gpu, "dry_run": gpu is None}
    # As it will be read.
    head: dict[str, Any] = json.loads(json.dumps(here))
    if not path.exists():
        return head
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultsError(f"{path}: not JSON ({error}); move it away, or give another --out") from error
    for name, value in head.items():
        if found.get(name) != value:
            raise ResultsError(
                f"{path}: its {name} is {found.get(name)!r}, here it is {value!r}; move it away, or give "
                "another --out"
            )
    return found


def save_results(path: Path, document: dict[str, Any]) -> None:
    """Write a result file whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".json.new")
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    scratch.write_text(text + "\n", encoding="utf-8")
    scratch.replace(path)
