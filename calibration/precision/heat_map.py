"""The picture of a sensitivity: which layers cost what in 8 bits, when, and at the end."""

import json
from collections.abc import Collection
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from flowturbo_trt.calibration.precision.sensitivity import Sensitivity

Values = NDArray[np.float64]
COLOURS = "viridis"
# Calls of other networks than a group's have no error to show.
EMPTY = "0.9"
# More ticks than these cannot be read below each other.
MOST_TICKS = 60
# Of an axis over errors that differ by less, there would be no tick to read.
LEAST_SPREAD = 4.0


def save_heat_map(sensitivity: Sensitivity, put_back: Collection[str], title: str, file: Path) -> Path:
    """Draw a sensitivity into a .png file and write its numbers into a .json file beside it, returned.

    Groups named in `put_back`, which stay in floating point, are marked.
    """
    draw(sensitivity, put_back, title).savefig(file, dpi=110)
    numbers = file.with_suffix(".json")
    document = {"title": title, "put_back": sorted(put_back), **sensitivity.describe()}
    numbers.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return numbers


def draw(sensitivity: Sensitivity, put_back: Collection[str], title: str) -> Figure:
    """Draw calls on the left, ends on the right, and a row for each group."""
    rows, calls = sensitivity.velocity.shape
    schedules = len(sensitivity.schedules)
    widths = (max(5.0, 0.22 * min(calls, MOST_TICKS)), max(1.5, 0.8 * schedules))
    size = (3.4 + sum(widths), 2.6 + 0.24 * rows)
    figure = Figure(figsize=size, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=widths)
    figure.suptitle(title, fontsize=11)
    _draw_calls(left, sensitivity)
    _draw_ends(right, sensitivity)
    labels = [group.name.removeprefix("predictor ") for group in sensitivity.groups]
    marks = ["  ○" if group.name in put_back else "" for group in sensitivity.groups]
    left.set_yticks(
        np.arange(rows), labels=[f"{a}{b}" for a, b in zip(labels, marks, strict=True)], fontsize=8
    )
    if put_back:
        left.set_ylabel("○ put back to floating point")
    return figure


def _draw_calls(axes: Axes, sensitivity: Sensitivity) -> None:
    sites = sensitivity.sites
    _fill(axes, sensitivity.velocity, "relative L2 of the velocity")
    shown = np.unique(np.linspace(0, len(sites) - 1, min(len(sites), MOST_TICKS)).round().astype(int))
    axes.set_xticks(shown, labels=[f"{sites[i].t:.2f}" for i in shown], rotation=90, fontsize=8)
    axes.set_xlabel("time t of the call")
    several = len(sensitivity.schedules) > 1
    axes.set_title("teacher-forced: each call on recorded inputs", fontsize=10, pad=18 if several else None)
    start = 0
    for schedule, of in groupby(sites, key=lambda site: site.schedule):
        count = len(list(of))
        if start:
            axes.axvline(start - 0.5, color="white", linewidth=2)
        if several:
            middle = (start + (count - 1) / 2, -0.5)
            axes.annotate(
                _short(schedule), middle, (0, 3), textcoords="offset points", ha="center", fontsize=8
            )
        start += count


def _draw_ends(axes: Axes, sensitivity: Sensitivity) -> None:
    _fill(axes, sensitivity.trajectory, "relative L2 of the latents")
    labels = [_short(schedule) for schedule in sensitivity.schedules]
    axes.set_xticks(np.arange(len(labels)), labels=labels, rotation=90 if len(labels) > 2 else 0, fontsize=8)
    axes.set_xlabel("schedule")
    axes.set_title("free-running: end\nof the trajectory", fontsize=10)


def _fill(axes: Axes, values: Values, label: str) -> None:
    """Fill an axes with values (rows, columns) on a logarithmic scale of colours, named below."""
    drawable = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    norm = LogNorm(*_limits(drawable))
    axes.set_facecolor(EMPTY)
    image: ScalarMappable = axes.imshow(
        drawable, cmap=COLOURS, norm=norm, aspect="auto", interpolation="nearest"
    )
    bar: Any = axes.figure.colorbar(image, ax=axes, label=label, location="bottom", aspect=30)
    bar.ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    bar.ax.xaxis.set_minor_formatter(NullFormatter())
    bar.ax.tick_params(labelsize=8, rotation=45)


def _limits(values: Values) -> tuple[float, float]:
    """Return where colours begin and end, far enough apart for ticks between."""
    if not np.isfinite(values).any():
        return 0.1, 1.0
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    widening = max(1.0, LEAST_SPREAD / (high / low)) ** 0.5
    return low / widening, high * widening


def _short(schedule: str, length: int = 14) -> str:
    """Return a schedule's text, cut where it would take others' place: grids of times are long."""
    return schedule if len(schedule) <= length else f"{schedule[: length - 1]}…"
