"""What `evaluate --compare` does: schedules of a bundle, compared in a table, a document and a page."""

import json
import math
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from flowturbo_trt.commands.common import JSON_VERSION, Console
from flowturbo_trt.evaluation.comparison import wording
from flowturbo_trt.evaluation.comparison.compare import compare
from flowturbo_trt.evaluation.comparison.errors import ComparisonError
from flowturbo_trt.evaluation.comparison.findings import Comparison
from flowturbo_trt.evaluation.comparison.finished import Finished, check_place, write_text
from flowturbo_trt.evaluation.comparison.options import ComparisonOptions
from flowturbo_trt.evaluation.comparison.preparation import prepare
from flowturbo_trt.evaluation.comparison.table import markdown
from flowturbo_trt.evaluation.speed.latency import Stability

TABLE, DOCUMENT, PAGE = "table.md", "report.json", "index.html"


def run(
    console: Console,
    *,
    schedules: Sequence[str],
    out: Path | None,
    metrics: Sequence[str] | None = None,
    max_seconds: float | None = None,
    **given: Any,
) -> None:
    """Compare `schedules` and write table.md, report.json and index.html into `out`.

    Timing ends after `max_seconds`. `given` are fields of ComparisonOptions; None stands for what is its
    default.
    """
    if out is None:
        raise click.UsageError("--compare writes a report of several files; give a folder for it with --out")
    if max_seconds is not None and math.isnan(max_seconds):
        raise click.UsageError("--max-seconds is no number")
    chosen = {name: value for name, value in given.items() if value is not None}
    if max_seconds is not None:
        chosen["stability"] = Stability(seconds=max_seconds)
    options = ComparisonOptions(schedules=tuple(schedules), metrics=tuple(metrics or ()), **chosen)
    check_place(out)
    render = load_page()
    with console.progress() as progress:
        prepared = prepare(options, console.info, progress)
        comparison = compare(prepared, Finished(out, console.info), options.stability, console.info, progress)
    document = {"command": "evaluate", **comparison.document()}
    write(comparison, document, render(comparison), out)
    console.result(document, f"{markdown(comparison)}\n\n{out / PAGE}: the whole report")


def load_page() -> Callable[[Comparison], str]:
    """Return what draws a comparison as a page; raises ComparisonError where a library is missing."""
    try:
        render: Callable[[Comparison], str] = import_module("flowturbo_trt.evaluation.comparison.page").render
    except ModuleNotFoundError as error:
        if str(error.name).startswith("flowturbo_trt"):
            raise
        raise ComparisonError(
            f"a report needs {error.name}, which is not installed; pip install 'flowturbo_trt[evaluate]'"
        ) from error
    return render


def write(comparison: Comparison, document: dict[str, Any], page: str, out: Path) -> None:
    """Write the three files, each whole or not at all."""
    text = json.dumps({"version": JSON_VERSION, **document}, indent=1, ensure_ascii=False)
    write_text(out / DOCUMENT, f"{text}\n")
    write_text(out / TABLE, wording.as_markdown(comparison, markdown(comparison)))
    write_text(out / PAGE, page)
