"""The picture of a search: error against time, everything that was tried, and the front."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from flowturbo_trt.calibration.tune.description import choose
from flowturbo_trt.calibration.tune.front import Budget
from flowturbo_trt.calibration.tune.preparation import Preparation
from flowturbo_trt.calibration.tune.results import Result, Tuned

# Of Okabe and Ito's palette, which the colour-blind can tell apart.
COLORS = {"with refiner": "#D55E00", "predictor alone": "#0072B2", "solver table": "#009E73"}
OWN, WINNER = "black", "#CC79A7"


def draw(prepared: Preparation, tuned: Tuned, budget: Budget, file: Path) -> None:
    """Draw a search into a file whose suffix matplotlib knows (.png, .svg)."""
    with matplotlib.rc_context({"svg.hashsalt": "flowturbo_trt", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 6), layout="constrained")
        axes = figure.subplots()
        _draw_tried(axes, tuned)
        _draw_front(axes, tuned)
        for name, color in COLORS.items():
            _draw_results(axes, [r for r in tuned.front if _kind(r) == name], color, name)
        _draw_own(axes, tuned)
        _draw_budget(axes, tuned, budget)
        _number(axes, tuned)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel=f"ms per image, {prepared.batch} rows a call",
            ylabel=f"error: relative L2 of the latent against {prepared.options.reference}",
            title=f"{prepared.main}: {len(tuned.tried)} candidates, and the front on held-out noises",
        )
        for axis in (axes.xaxis, axes.yaxis):
            _plain_numbers(axis)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(file, dpi=120, metadata={"Date": None} if file.suffix == ".svg" else None)


def _draw_tried(axes: Axes, tuned: Tuned) -> None:
    most = max(tried.rows for tried in tuned.tried)
    for is_last, alpha, label in ((False, 0.25, None), (True, 0.6, "tried (expected time)")):
        shown = [tried for tried in tuned.tried if (tried.rows == most) == is_last]
        axes.plot(
            [tuned.drift * tried.ms for tried in shown],
            [tried.error for tried in shown],
            ".",
            color="0.6",
            alpha=alpha,
            label=label,
            zorder=1,
        )


def _draw_front(axes: Axes, tuned: Tuned) -> None:
    """Draw the front as stairs: a slower schedule is worth its time only past the next step."""
    points = [result.values for result in tuned.front]
    axes.step(
        *zip(*points, strict=True), where="post", color="0.3", linewidth=1, linestyle="--", label="front"
    )


def _draw_results(axes: Axes, results: Sequence[Result], color: str, label: str) -> None:
    if not results:
        return
    axes.errorbar(
        [result.latency.ms for result in results],
        [result.error for result in results],
        yerr=_bars(results),
        fmt="o",
        color=color,
        elinewidth=1,
        capsize=2,
        label=label,
        zorder=3,
    )


def _draw_own(axes: Axes, tuned: Tuned) -> None:
    baseline, *others = tuned.own
    axes.plot(
        *baseline.values,
        "*",
        color=OWN,
        markersize=13,
        linestyle="none",
        label=f"the bundle's default, {_short(baseline.name)}",
        zorder=4,
    )
    if others:
        axes.plot(
            *zip(*(result.values for result in others), strict=True),
            "P",
            color=OWN,
            markersize=8,
            linestyle="none",
            label=f"its others: {_short(', '.join(result.name for result in others))}",
            zorder=4,
        )


def _draw_budget(axes: Axes, tuned: Tuned, budget: Budget) -> None:
    if budget.ms is not None:
        axes.axvline(budget.ms, color=WINNER, linestyle=":", label=f"budget {budget.ms:g} ms")
    if budget.error is not None:
        axes.axhline(budget.error, color=WINNER, linestyle=":", label=f"budget {budget.error:g}")
    if (winner := choose(tuned, budget)) is not None:
        axes.plot(
            *winner.values,
            "o",
            markersize=16,
            markerfacecolor="none",
            markeredgecolor=WINNER,
            markeredgewidth=2,
            linestyle="none",
            label="winner",
            zorder=5,
        )


def _number(axes: Axes, tuned: Tuned) -> None:
    """Number the front as the table does: schedules with grids are too long to write."""
    for number, result in enumerate(tuned.front, start=1):
        axes.annotate(
            str(number), result.values, xytext=(5, 6), textcoords="offset points", fontsize=9, zorder=6
        )


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


def _kind(result: Result) -> str:
    if result.candidate.schedule.table is not None:
        return "solver table"
    return "with refiner" if result.candidate.is_refined else "predictor alone"


def _bars(results: Sequence[Result]) -> list[list[float]]:
    """Return the lengths of error bars below and above."""
    ends = [(result.error, *result.error_interval) for result in results]
    return [[max(0.0, e - low) for e, low, _ in ends], [max(0.0, high - e) for e, _, high in ends]]


def _plain_numbers(axis: Axis) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
