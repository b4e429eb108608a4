"""The README's tables, generated from benchmarks/results/ so that no number is typed by hand."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
# Latencies are compared with these schedules, at the largest batch.
BASELINES = ("H8", "H25")
MARKED = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def update_readme() -> None:
    """Put the tables of the current results into the README."""
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(text: str) -> str:
    """Return the text with every marked table made anew."""
    return MARKED.sub(lambda match: f"{match[1]}{render(match[2])}{match[3]}", text)


def render(name: str) -> str:
    """Return the Markdown of a result file: its table, its checks and how it was measured."""
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return "\n".join(
        [*TABLES[name](result["schedules"]), "", *_checks(result), "", _configuration(result), ""]
    )


def _latency(rows: list[dict[str, Any]]) -> list[str]:
    by_name = {row["schedule"]: row["ms_per_image"] for row in rows}
    batches = list(rows[0]["ms_per_image"])
    columns = [f"ms/image, batch {batch}" for batch in batches]
    lines = _head("schedule", "evaluations", *columns, *(f"× {base}" for base in BASELINES))
    for row in rows:
        ms = row["ms_per_image"]
        evaluations = " + ".join(f"{count} {network}" for network, count in row["evaluations"].items())
        ratios = [f"{by_name[base][batches[-1]] / ms[batches[-1]]:.2f}" for base in BASELINES]
        lines.append(_row(row["schedule"], evaluations, *(f"{ms[b]:.1f}" for b in batches), *ratios))
    return lines


def _quality(rows: list[dict[str, Any]]) -> list[str]:
    lines = _head("schedule", "recognised", "Fréchet distance", "endpoint error")
    for row in rows:
        figures = (
            f"{row['recognised']:.1%}",
            f"{row['frechet_distance']:.3f}",
            f"{row['endpoint_error']:.2f}",
        )
        lines.append(_row(row["schedule"], *figures))
    return lines


TABLES = {"digits_latency": _latency, "digits_quality": _quality}


def _checks(result: dict[str, Any]) -> list[str]:
    lines = _head("promise", "measured", "limit", "")
    for check in result["checks"]:
        spread = check["interval"]
        interval = f" (95 %: {spread[0]:.3g} to {spread[1]:.3g})" if spread else ""
        met = "met" if check["met"] else "**not met**"
        lines.append(_row(check["name"], f"{check['value']:.3g}{interval}", check["limit"], met))
    return lines


def _head(*cells: str) -> list[str]:
    return [_row(*cells), _row(*("---" for _ in cells))]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _configuration(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    gpu = machine["gpu"] or "no GPU"
    scope = (
        f"{result['samples']} samples"
        if "samples" in result
        else f"medians of {result['repeats']} runs in turn"
    )
    return (
        f"{machine['cores']} cores of {machine['cpu']}, {gpu}; {result['backend']} {result['precision']}, "
        f"guidance {result['guidance']}, {scope}; {packages}. Written by `make proof`."
    )
