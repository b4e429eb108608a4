"""The tables of the pages, generated from benchmarks/results/ so that no number is typed by hand."""

import json
import re
from pathlib import Path
from typing import Any

from flowturbo_trt.benchmarks.gpu import tables as gpu_tables

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "serving" / "README.md")
RESULTS = ROOT / "benchmarks" / "results"
# Latencies are compared with these schedules, at the largest batch.
BASELINES = ("H8", "H25")
MARKED = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def update_pages() -> None:
    """Put the tables of the current results into the pages that show them."""
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(text: str) -> str:
    """Return the text with every marked table made anew."""
    return MARKED.sub(lambda match: f"{match[1]}{render(match[2])}{match[3]}", text)


def render(name: str) -> str:
    """Return the Markdown of a result file: its table, its checks and how it was measured."""
    if name in gpu_tables.MAKE:
        return gpu_tables.render(name, RESULTS)
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return "\n".join([*TABLES[name](result), "", *_checks(result), "", _configuration(result), ""])


def _latency(result: dict[str, Any]) -> list[str]:
    rows = result["schedules"]
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


def _quality(result: dict[str, Any]) -> list[str]:
    lines = _head("schedule", "predictor", "refiner", *JUDGED, "R's gain")
    for row in result["schedules"]:
        counts = (str(row["evaluations"].get(network, 0)) for network in ("predictor", "refiner"))
        gain = "" if row["gain"] is None else f"{row['gain']:.2f}×"
        lines.append(_row(row["schedule"], *counts, *_judged(row), gain))
    return lines


def _refiner(result: dict[str, Any]) -> list[str]:
    lines = _head("schedule", *JUDGED)
    lines += [_row(text, *_judged(figures)) for text, figures in result["schedules"].items()]
    schedules = list(result["variants"][0]["schedules"])
    errors = [f"{text}, endpoint error" for text in schedules]
    distances = [f"{text}, Fréchet distance" for text in schedules]
    lines += ["", *_head("trained", "last loss", *errors, *distances)]
    for row in result["variants"]:
        judged = [row["schedules"][text] for text in schedules]
        figures = [f"{j['endpoint_error']:.3f}" for j in judged]
        figures += [f"{j['frechet_distance']:.3f}" for j in judged]
        loss = "" if row["loss"] is None else f"{row['loss']:.4f}"
        lines.append(_row(row["variant"], loss, *figures))
    return lines


def _solver(result: dict[str, Any]) -> list[str]:
    lines = _head("solver", "predictor", "refiner", *JUDGED, "fitted in")
    for row in [*result["tables"], *result["others"]]:
        counts = (str(row["evaluations"].get(network, 0)) for network in ("predictor", "refiner"))
        name = f"table, {row['name']}" if "table" in row else row["name"]
        time = f"{row['all_seconds'] / 60:.1f} min" if "table" in row else ""
        lines.append(_row(name, *counts, *_judged(row), time))
    by_scale = result["errors_at_scales"]
    scales = list(next(iter(by_scale.values())))
    lines += ["", *_head("relative endpoint error at guidance", *scales)]
    tables = {row["name"] for row in result["tables"]}
    for name, errors in by_scale.items():
        label = f"table, {name}" if name in tables else name
        lines.append(_row(label, *(f"{errors[scale]:.4f}" for scale in scales)))
    return lines


def _precision(result: dict[str, Any]) -> list[str]:
    lines = _head(
        *("kind", "layers", "trajectory error", "budget", "image PSNR, dB", "recognised (float32)"),
        *("ms by batch (float32)", "engine, MB (float32)"),
    )
    for row in result["kinds"]:
        times = (f"{batch}: {q:.1f} ({f:.1f})" for batch, (q, f) in row["milliseconds"].items())
        figures = f"{row['trajectory_error']:.4f}", f"{row['budget']:.4f}", f"{row['psnr']:.1f}"
        share = f"{row['recognised']:.1%} ({row['recognised_float32']:.1%})"
        size = f"{row['megabytes']:.1f} ({row['megabytes_float32']:.1f})"
        time = "; ".join(times) or "not measured"
        lines.append(_row(row["kind"], str(row["layers"]), *figures, share, time, size))
    return lines


def _tune(result: dict[str, Any]) -> list[str]:
    ratio = f"of {result['baseline']['schedule']}'s"
    lines = _head("schedule", "predictor", "refiner", "ms/image", "error", ratio)
    for row in result["front"]:
        counts = (str(row["evaluations"].get(network, 0)) for network in ("predictor", "refiner"))
        figures = f"{row['ms_per_image']:.3g}", f"{row['error']:.4f}", f"{row['error_of_baseline']:.2f}"
        lines.append(_row(f"`{row['schedule']}`", *counts, *figures))
    return lines


def _bulk(result: dict[str, Any]) -> list[str]:
    values = {name: f"{value:.4g}" for name, value in result["metrics"].items()}
    lines = _head("images", "images/s", "generated in", "evaluated in", *values)
    minutes = [f"{result[f'{work}_seconds'] / 60:.1f} min" for work in ("generation", "evaluation")]
    rate = f"{result['images_per_second']:.0f}"
    lines.append(_row(f"{result['images']:,}", rate, *minutes, *values.values()))
    return lines


JUDGED = ("recognised", "Fréchet distance", "endpoint error")


def _judged(figures: dict[str, Any]) -> tuple[str, str, str]:
    return (
        f"{figures['recognised']:.1%}",
        f"{figures['frechet_distance']:.3f}",
        f"{figures['endpoint_error']:.3f}",
    )


def _builds(result: dict[str, Any]) -> list[str]:
    networks = list(result["builds"][0]["plan_mb"])
    plans = [f"{network} plan, MB" for network in networks]
    lines = _head("pixels", "seconds", "GiB resident at most", "seconds again", *plans, "bundle, GB")
    for row in result["builds"]:
        sizes = [f"{row['plan_mb'][network]:.0f}" for network in networks]
        figures = [f"{row['seconds']:.0f}", f"{row['peak_gib']:.1f}", f"{row['seconds_again']:.0f}"]
        lines.append(_row(str(row["pixels"]), *figures, *sizes, f"{row['bundle_mb'] / 1000:.1f}"))
    return lines


def _speed(result: dict[str, Any]) -> list[str]:
    lines = _head("batch", "ms", "share of sgemm", "weights, MB", "held, MB")
    for row in result["batches"]:
        memory = [f"{row[name]:.0f}" for name in ("weight_megabytes", "loaded_megabytes")]
        time = f"{row['milliseconds']:.0f}"
        lines.append(_row(str(row["batch"]), time, f"{row['share_of_sgemm']:.0%}", *memory))
    return lines


def _cpu(result: dict[str, Any]) -> list[str]:
    cases = result["cases"]
    names = list(dict.fromkeys(name for case in cases for name in case["milliseconds"]))
    lines = _head("ms per batch", *(f"{case['model']}, batch {case['batch']}" for case in cases))
    for name in names:
        times = (case["milliseconds"].get(name) for case in cases)
        lines.append(_row(name, *("" if time is None else f"{time:.4g}" for time in times)))
    return lines


def _quantized(result: dict[str, Any]) -> list[str]:
    lines = [*_cpu(result), "", *_head("TensorRT-RTX plan", "MB", "products by what they read")]
    for row in result["plans"]:
        products = ", ".join(f"{count} {types}" for types, count in row["products"].items())
        name = f"{row['model']} {row['precision']}, batch {row['batch']}"
        lines.append(_row(name, f"{row['megabytes']:.0f}", products))
    return lines


def _served(result: dict[str, Any]) -> list[str]:
    lines = _head("load", "images/s", "median ms", "99 % ms", "requests", "failed")
    for rows, ms in result["in_process_ms"].items():
        name = f"the pipeline itself, {rows} image{'s' if rows != '1' else ''} a call"
        lines.append(_row(name, f"{int(rows) / ms * 1e3:.1f}", f"{ms:.1f}", "", "", ""))
    for name, load in result["loads"].items():
        times = (f"{load[key]:.1f}" for key in ("images_per_second", "p50_ms", "p99_ms"))
        lines.append(_row(name, *times, str(load["requests"]), str(load["errors"])))
    lines += ["", *_head("memory, MB", "the server", "each instance")]
    for name, sizes in result["memory_megabytes"].items():
        lines.append(_row(name, *(f"{sizes[part]:.0f}" for part in ("server", "instance"))))
    return lines


def _only_checks(result: dict[str, Any]) -> list[str]:
    return []


TABLES = {
    "digits_latency": _latency,
    "digits_quality": _quality,
    "digits_refiner": _refiner,
    "digits_solver": _solver,
    "digits_precision": _precision,
    "digits_tune": _tune,
    "bulk_generation": _bulk,
    "full_size": _builds,
    "killed_builds": _only_checks,
    "onnxruntime_speed": _speed,
    "cpu_latency": _cpu,
    "cpu_settings": _cpu,
    "quantized_speed": _quantized,
    "triton_load": _served,
    "triton_soak": _only_checks,
    "cpp_library": _only_checks,
}


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
    how = [f"{result[name]}" for name in ("model", "schedule") if name in result]
    how += [f"{result['backend']} {result['precision']}"] if "backend" in result else []
    how += [f"guidance {result['guidance']}"] if "guidance" in result else []
    how += [f"{result['samples']} samples"] if "samples" in result else []
    how += [f"medians of {result['repeats']} runs in turn"] if "repeats" in result else []
    parts = [f"{machine['cores']} cores of {machine['cpu']}, {gpu}", ", ".join(how), packages]
    return f"{'; '.join(filter(None, parts))}. Written by `make proof`."


if __name__ == "__main__":
    # Where result files have come from another machine.
    update_pages()
