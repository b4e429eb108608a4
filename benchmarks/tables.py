"""The README's tables, generated from benchmarks/results/ so that no number is typed by hand."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MARKED = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def update_readme() -> None:
    """Put the tables of the current results into the README."""
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(text: str) -> str:
    """Return the text with every marked table made anew."""
    return MARKED.sub(lambda match: f"{match[1]}{render(match[2])}{match[3]}", text)


def render(name: str) -> str:
    """Return the Markdown of a result file's table, checks and configuration."""
    result = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return "\n".join([*_rows(result), "", *_checks(result), "", _configuration(result), ""])


def _rows(result: dict[str, Any]) -> list[str]:
    by_name = {row["schedule"]: row for row in result["schedules"]}
    batch = str(result["batch"])
    lines = [
        "| schedule | evaluations | ms/image, batch 1 | ms/image, batch "
        f"{batch} | vs H8 | vs H25 | recognised | Fréchet | endpoint error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in by_name.items():
        ms = row["ms_per_image"]
        evaluations = " + ".join(f"{count} {network}" for network, count in row["evaluations"].items())
        baselines = [by_name[name]["ms_per_image"][batch] for name in ("H8", "H25")]
        ratios = " | ".join(f"{baseline / ms[batch]:.2f}×" for baseline in baselines)
        lines.append(
            f"| {name} | {evaluations} | {ms['1']:.1f} | {ms[batch]:.1f} | {ratios} "
            f"| {row['recognised']:.1%} | {row['frechet_distance']:.2f} | {row['endpoint_error']:.2f} |"
        )
    return lines


def _checks(result: dict[str, Any]) -> list[str]:
    lines = ["| promise | measured | limit | |", "|---|---|---|---|"]
    for check in result["checks"]:
        spread = check["interval"]
        interval = f" (95 %: {spread[0]:.2f} to {spread[1]:.2f})" if spread else ""
        met = "met" if check["met"] else "**not met**"
        lines.append(f"| {check['name']} | {check['value']:.3g}{interval} | {check['limit']} | {met} |")
    return lines


def _configuration(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    gpu = machine["gpu"] or "no GPU"
    return (
        f"{machine['cores']} cores of {machine['cpu']}, {gpu}; {result['backend']} {result['precision']}, "
        f"guidance {result['guidance']}, {result['samples']} samples; {packages}. Written by `make proof`."
    )
