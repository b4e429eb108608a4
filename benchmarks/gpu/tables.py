"""The README's tables about GPUs; without a result file they say so."""

import json
from pathlib import Path
from typing import Any

NOT_MEASURED = "Not measured yet: `make {target}` writes these figures on a machine with an NVIDIA GPU.\n"
MAKE = {"gpu_check": "gpu-check", "gpu_bench": "gpu-bench"}
NO_FIGURE = "–"


def render(name: str, folder: Path) -> str:
    """Return the Markdown of a result file in `folder`, or that there is none; a dry run is none."""
    path = folder / f"{name}.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"dry_run": True}
    if result["dry_run"]:
        return NOT_MEASURED.format(target=MAKE[name])
    if name == "gpu_check":
        parts = [f"{result['answer']}.", _markdown(check_rows(result))]
    else:
        found = (bench_rows(result), stage_rows(result), apart_rows(result))
        parts = [_markdown(rows) for rows in found if len(rows) > 1]
    return "\n\n".join([*parts, _configuration(result, MAKE[name])]) + "\n"


def check_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return a head and a row for each backend: what of it held."""
    rows = [["backend", "", "passed", "failed", "not run", "failed checks"]]
    for entry in result["targets"]:
        checks = entry.get("checks", [])
        counts = [
            sum(check["status"] == status for check in checks) for status in ("passed", "failed", "not run")
        ]
        ran = entry["status"] == "ran"
        left = entry.get("checks_left", 0)
        said = "runs" if ran else f"{entry['status']}: {entry['why']}"
        said += f"; {left} groups of checks not reached" if left else ""
        failed = "; ".join(check["name"] for check in checks if check["status"] == "failed")
        rows.append(
            [entry["target"], said, *(str(n) if ran else NO_FIGURE for n in counts), failed or NO_FIGURE]
        )
    return rows


def bench_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return a head and a row for each case: milliseconds per batch of all contestants."""
    cases = result["cases"]
    names = list(dict.fromkeys(name for case in cases for name in case["contestants"]))
    rows = [["ms per batch", "batch", "", *names, "least possible", "reached by the fastest"]]
    for case in cases:
        found = case["contestants"]
        timed = {name: entry for name, entry in found.items() if "median_ms" in entry}
        times = [f"{timed[name]['median_ms']:.2f}" if name in timed else NO_FIGURE for name in names]
        fastest = min(timed.values(), key=_median, default=None)
        least = case["floor_ms"]
        floor = [NO_FIGURE, NO_FIGURE]
        if least is not None and fastest is not None:
            floor = [f"{min(least.values()):.2f}", f"{min(least.values()) / _median(fastest):.0%}"]
        rows.append([case["schedule"], str(case["batch"]), case["precision"], *times, *floor])
    return rows


def stage_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return a head and a row for each case and contestant whose stages were timed alone."""
    found = [
        (case, name, entry["stages_ms"])
        for case in result["cases"]
        for name, entry in case["contestants"].items()
        if entry.get("stages_ms")
    ]
    stages = list(dict.fromkeys(stage for _, _, times in found for stage in times))
    # What is left over comes last.
    stages.sort(key="rest".__eq__)
    rows = [["stages, ms per batch", "batch", "", "", *stages]]
    for case, name, times in found:
        cells = [f"{times[stage]:.2f}" if stage in times else NO_FIGURE for stage in stages]
        rows.append([case["schedule"], str(case["batch"]), case["precision"], name, *cells])
    return rows


def apart_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return a head and a row for each contestant: what it takes before its first case, memory and error."""
    head = ["before anything is timed", "loading, s", "first run, s", "graphs compiled", "GPU memory, MB"]
    rows = [[*head, "relative L2 to float32"]]
    first: dict[str, dict[str, Any]] = {}
    for name, entry in ((n, e) for case in result["cases"] for n, e in case["contestants"].items()):
        # Torch keeps what it has compiled for a later case, which then is no first one.
        if "failure" not in entry and (name != "torch-compile" or entry["graphs_compiled"]):
            first.setdefault(name, entry)
    for name, entry in first.items():
        compiled = NO_FIGURE
        if entry.get("graphs_compiled"):
            compiled = f"{entry['graphs_compiled']}, {entry['graphs_from_cache']} from torch's cache"
        times = [f"{entry[key]:.1f}" for key in ("load_seconds", "first_run_seconds")]
        memory = entry["device_megabytes"]
        megabytes = NO_FIGURE if memory is None else f"{memory:.0f}"
        rows.append([name, *times, compiled, megabytes, f"{entry['relative_l2']:.1e}"])
    return rows


def _median(entry: dict[str, Any]) -> float:
    milliseconds: float = entry["median_ms"]
    return milliseconds


def _markdown(rows: list[list[str]]) -> str:
    head, *others = rows
    lines = [head, ["---"] * len(head), *others]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _configuration(result: dict[str, Any], target: str) -> str:
    machine = result["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    models = dict.fromkeys(f"{c['model']}, guidance {c['guidance']}" for c in result.get("cases", []))
    gpu = machine["gpu"] or result["device"]["name"]
    parts = [f"{gpu}, {machine['cores']} cores of {machine['cpu']}", *models, packages]
    return f"{'; '.join(parts)}. Written by `make {target}`."
