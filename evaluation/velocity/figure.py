"""The picture of a diagnosis: four panels."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from flowturbo_trt.evaluation.velocity.description import quartiles, worths
from flowturbo_trt.evaluation.velocity.diagnosis import Diagnosis
from flowturbo_trt.sampling.schedule import Schedule

Values = NDArray[np.float64]
# Of Okabe and Ito's palette, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
# What colours stand for, the same in all pictures: worths, and relative errors.
WORTH_LIMITS = (1 / 4, 4)
REUSE_LIMITS = (0.01, 1)
ENDINGS = {
    "as is": ("as it is", BLACK),
    "refined": ("refiner", BLUE),
    "perfect": ("perfect refiner", GREEN),
    "reused": ("velocity reused", ORANGE),
    "left out": ("R steps left out", PURPLE),
}


def draw(diagnosis: Diagnosis, files: Sequence[Path]) -> None:
    """Draw a diagnosis into files whose suffix matplotlib knows (.png, .svg)."""
    plan = diagnosis.plan
    # The same diagnosis gives the same file: SVG would otherwise hold random names, and the date.
    with matplotlib.rc_context({"svg.hashsalt": "flowturbo_trt", "svg.fonttype": "none"}):
        figure = Figure(figsize=(12, 8.5), layout="constrained")
        (a, b), (c, d) = figure.subplots(2, 2)
        figure.suptitle(
            f"{_short(plan.schedule, 60)} at guidance {plan.guidance:g}: medians and quartiles of "
            f"{len(plan.request)} images, against H{plan.steps}"
        )
        _draw_curvature(a, diagnosis)
        _draw_errors(b, diagnosis)
        _draw_ages(c, diagnosis)
        _draw_endpoints(d, diagnosis)
        for file in files:
            figure.savefig(file, dpi=120, metadata={"Date": None} if file.suffix == ".svg" else None)


def _draw_curvature(axes: Axes, diagnosis: Diagnosis) -> None:
    times = diagnosis.plan.times[:-1]
    found = diagnosis.curvature
    _line(axes, times, found.velocity, "velocity v", BLUE, "-")
    _line(axes, times, found.noise, "noise x − t·v", ORANGE, "--")
    _line(axes, times, found.data, "data x + (1 − t)·v", GREEN, "-.")
    axes.set(title="How steady is what is predicted?", xlabel="time t (0 noise, 1 data)", xlim=(0, 1))
    _logarithmic(axes, "relative change per unit of time")
    axes.legend()


def _draw_errors(axes: Axes, diagnosis: Diagnosis) -> None:
    plan, lags, unguided = diagnosis.plan, diagnosis.lags, diagnosis.unguided
    column = plan.lags.index(plan.lag)
    _line(axes, plan.times, lags.reuse[:, column], "velocity reused", ORANGE, "-")
    _line(axes, plan.times, lags.extrapolated[:, column], "line through two", GREEN, "-.")
    if lags.refined is not None:
        _line(axes, plan.times, lags.refined[:, column], "refiner", BLUE, "-")
    if unguided is not None:
        kind = "reused, no guidance" if unguided.refined is None else "refiner, no guidance"
        values, color = (unguided.reuse, ORANGE) if unguided.refined is None else (unguided.refined, BLUE)
        _line(axes, plan.times, values[:, column], kind, color, ":")
    axes.set(title=f"Velocity at s from that at s − {plan.deltas[column]:g}", xlabel="time s", xlim=(0, 1))
    _logarithmic(axes, "relative error of the velocity")
    axes.legend()


def _draw_ages(axes: Axes, diagnosis: Diagnosis) -> None:
    plan, lags = diagnosis.plan, diagnosis.lags
    if lags.refined is None:
        values, label = np.median(lags.reuse, axis=-1), "relative error of reuse"
        title, colors = "What a refiner could take away", "cividis"
        norm = LogNorm(*REUSE_LIMITS)
    else:
        values, label = worths(lags.reuse, lags.refined), "worth: error of reuse / error of the refiner"
        title, colors = "Where the refiner helps (blue) and harms (red)", "RdBu"
        norm = LogNorm(*WORTH_LIMITS)
    mesh = axes.pcolormesh(
        _edges(plan.times), _edges(plan.deltas), _drawable(values).T, cmap=colors, norm=norm
    )
    bar = axes.figure.colorbar(mesh, ax=axes, label=label, extend="both", location="bottom", aspect=40)
    # Not the colour of any cell: here no velocity is that old.
    axes.set_facecolor("0.85")
    bar.minorticks_off()
    if lags.refined is not None:
        bar.set_ticks([1 / 4, 1 / 2, 1, 2, 4], labels=["¼", "½", "1", "2", "4"])
    else:
        _number(bar.ax.xaxis)
    axes.set(title=title, xlabel="time s", ylabel="age Δ of the velocity", xlim=(0, 1), ylim=(0, None))
    if plan.calls:
        t, age = [call.t for call in plan.calls], [call.age for call in plan.calls]
        axes.plot(t, age, "o", color="white", markeredgecolor="black", clip_on=False, zorder=3)
        axes.plot(
            [], [], "o", color="white", markeredgecolor="black", label=f"calls in {_short(plan.schedule)}"
        )
        axes.legend(loc="upper left")


def _draw_endpoints(axes: Axes, diagnosis: Diagnosis) -> None:
    for row, (way, errors) in enumerate(zip(diagnosis.plan.endings, diagnosis.endpoints, strict=True)):
        low, median, high = quartiles(errors).values()
        axes.barh(row, median, color=ENDINGS[way.name][1], alpha=0.75, height=0.6)
        axes.errorbar(median, row, xerr=[[median - low], [high - median]], color=BLACK, capsize=4)
        axes.annotate(f"{median:.3g}", (high, row), xytext=(6, 0), textcoords="offset points", va="center")
    ways = diagnosis.plan.endings
    labels = [f"{ENDINGS[way.name][0]}\n{_short(way.schedule)}" for way in ways]
    axes.set_yticks(range(len(ways)), labels=labels)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(title="How far from the truth does it end?", xlabel="relative L2 of the latent")


def _line(axes: Axes, times: Sequence[float], values: Values, label: str, color: str, style: str) -> None:
    """Draw the median of values (T,N) over time with a band between its quartiles."""
    low, median, high = (_drawable(level) for level in quartiles(values).values())
    axes.plot(times, median, style, color=color, label=label)
    axes.fill_between(times, low, high, color=color, alpha=0.15, linewidth=0)


def _logarithmic(axes: Axes, label: str) -> None:
    if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
        # Without any change or error there is nothing to draw, and no scale for it either.
        axes.set_ylim(0.1, 1)
    axes.set(yscale="log", ylabel=label)
    _number(axes.yaxis)
    axes.grid(alpha=0.3)


def _number(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _short(schedule: Schedule, length: int = 18) -> str:
    """Return a schedule's text, cut where it would take a panel's place: grids of times are long."""
    text = str(schedule)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _drawable(values: Values) -> Values:
    """Leave out what a logarithmic scale cannot show."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _edges(centres: Sequence[float]) -> Values:
    """Return where cells meet around their centres: halfway, the outer ones as wide as their neighbours."""
    c = np.asarray(centres, dtype=np.float64)
    if len(c) == 1:
        return np.array([0.0, 2 * c[0]])
    between = (c[1:] + c[:-1]) / 2
    return np.concatenate([[2 * c[0] - between[0]], between, [2 * c[-1] - between[-1]]])
