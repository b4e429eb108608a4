"""Quality against latency, drawn as SVG that takes its colours and letters from the page around it."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox

from flowturbo_trt.evaluation.comparison.findings import Figure
from flowturbo_trt.evaluation.pareto import pareto_front

# Stands for the page's text colour, which a drawing cannot know.
INK = "#010203"
REFINED, UNREFINED, FRONT = "#d1495b", "#3d7fd9", "#7a869a"
SIZE = (5.8, 4.2)
# Values that spread more than this are told apart on a logarithmic axis only.
LOGARITHMIC = 12
# Where a label may stand, in points from its point, the nearest first.
PLACES = sorted(
    product((7, -7, 22, -22, 45, -45), (0, 9, -9, 20, -20, 32, -32, 45, -45)),
    key=lambda place: math.hypot(*place),
)
# From here on a line tells which point a label is of.
FAR = 15
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flowturbo_trt",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Point:
    """A schedule in the plot: milliseconds for an image, and a quality of which less or more is better."""

    name: str
    is_refined: bool
    latency: Figure
    quality: Figure


def front_of(points: Sequence[Point], *, lower_is_better: bool) -> list[Point]:
    """Return the points that no other beats in both latency and quality, fastest first."""
    sign = 1 if lower_is_better else -1
    return pareto_front(points, lambda point: (point.latency.value, sign * point.quality.value))


def draw(points: Sequence[Point], quality: str, *, lower_is_better: bool, as_percent: bool = False) -> str:
    """Draw quality (its axis named `quality`) against latency as an <svg> element for an HTML page."""
    with matplotlib.rc_context(_RC):
        drawing = Drawing(figsize=SIZE, layout="constrained")
        FigureCanvasSVG(drawing)
        axes = drawing.add_subplot()
        axes.set_xlabel("ms per image")
        axes.set_ylabel(quality)
        axes.margins(0.12)
        axes.grid(color=FRONT, alpha=0.2, linewidth=0.6)
        _scale(axes, points)
        if as_percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        _draw_front(axes, front_of(points, lower_is_better=lower_is_better), points, lower_is_better)
        for is_refined, colour, marker, words in (
            (True, REFINED, "o", "with refiner"),
            (False, UNREFINED, "s", "predictor alone"),
        ):
            _draw_points(axes, [p for p in points if p.is_refined == is_refined], colour, marker, words)
        # Beside the axes, where no bar can run into it.
        drawing.legend(frameon=False, fontsize=9.5, loc="outside upper center", ncols=3, handletextpad=0.4)
        # Names are placed among what has its place.
        drawing.draw_without_rendering()
        _label(axes, points)
        out = io.StringIO()
        # Without metadata, in which the file would name addresses.
        drawing.savefig(
            out,
            format="svg",
            transparent=True,
            metadata={"Creator": None, "Date": None, "Format": None, "Type": None},
        )
    return _embedded(out.getvalue())


def _scale(axes: Axes, points: Sequence[Point]) -> None:
    for name, values in (
        ("x", [point.latency.value for point in points]),
        ("y", [point.quality.value for point in points]),
    ):
        if min(values) > 0 and max(values) > LOGARITHMIC * min(values):
            getattr(axes, f"set_{name}scale")("log")


def _draw_front(axes: Axes, front: Sequence[Point], points: Sequence[Point], lower_is_better: bool) -> None:
    """Draw the front as stairs: a slower schedule is worth its time only past the next step."""
    worst = (max if lower_is_better else min)(point.quality.value for point in points)
    slowest = max(point.latency.value for point in points)
    x = [front[0].latency.value, *(p.latency.value for p in front), slowest]
    y = [worst, *(p.quality.value for p in front), front[-1].quality.value]
    axes.step(x, y, where="post", color=FRONT, linewidth=1.2, linestyle=(0, (4, 3)), label="Pareto front")


def _draw_points(axes: Axes, points: Sequence[Point], colour: str, marker: str, words: str) -> None:
    if not points:
        return
    axes.errorbar(
        [p.latency.value for p in points],
        [p.quality.value for p in points],
        xerr=_errors([p.latency for p in points]),
        yerr=_errors([p.quality for p in points]),
        fmt=marker,
        color=colour,
        markersize=6,
        elinewidth=1,
        capsize=2,
        label=words,
    )


def _errors(figures: Sequence[Figure]) -> Any:
    """Return the bars (2,N) below and above the figures: none where no interval is known."""
    bars = [
        (0.0, 0.0) if f.interval is None else (f.value - f.interval[0], f.interval[1] - f.value)
        for f in figures
    ]
    return np.clip(np.transpose(bars), 0, None)


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Name every point where its name covers no other name, no point, and bars as little as can be."""
    inside = axes.get_window_extent()
    taken = [(_box(axes, p.latency.value, p.quality.value, 5), 1.0) for p in points]
    taken += [(bar, 0.3) for point in points for bar in _bars(axes, point)]
    for point in points:
        boxes = _places(axes, point)
        costs = [
            sum(weight * _common(box, other) for other, weight in taken)
            + 10 * (_area(box) - _common(box, inside))
            + rank
            for rank, box in enumerate(boxes)
        ]
        chosen = int(np.argmin(costs))
        taken.append((boxes[chosen], 1.0))
        _write(axes, point, PLACES[chosen])


def _write(axes: Axes, point: Point, place: tuple[float, float]) -> Any:
    line = {"arrowstyle": "-", "color": FRONT, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4}
    return axes.annotate(
        point.name,
        (point.latency.value, point.quality.value),
        xytext=place,
        textcoords="offset points",
        ha="left" if place[0] > 0 else "right",
        va="center",
        fontsize=10,
        arrowprops=line if math.hypot(*place) > FAR else None,
    )


def _places(axes: Axes, point: Point) -> list[Bbox]:
    """Return where a point's name would lie at each of PLACES, in pixels."""
    sample = _write(axes, point, PLACES[0])
    size = sample.get_window_extent()
    sample.remove()
    x, y = axes.transData.transform((point.latency.value, point.quality.value))
    scale = axes.figure.dpi / 72
    return [
        Bbox.from_bounds(
            x + scale * dx - (size.width if dx < 0 else 0),
            y + scale * dy - size.height / 2,
            size.width,
            size.height,
        )
        for dx, dy in PLACES
    ]


def _box(axes: Axes, x: float, y: float, half: float) -> Bbox:
    """Return a square around a point of the data, in pixels, from its half side in points."""
    at, reach = axes.transData.transform((x, y)), half * axes.figure.dpi / 72
    return Bbox([at - reach, at + reach])


def _bars(axes: Axes, point: Point) -> list[Bbox]:
    """Return the boxes of a point's error bars, in pixels."""
    (x, y), bars = (point.latency, point.quality), []
    for ends in (
        [(end, y.value) for end in x.interval or ()],
        [(x.value, end) for end in y.interval or ()],
    ):
        if ends:
            corners = [_box(axes, *end, 1) for end in ends]
            bars.append(Bbox.union(corners))
    return bars


def _area(a: Bbox) -> float:
    return float(a.width * a.height)


def _common(a: Bbox, b: Bbox) -> float:
    found = Bbox.intersection(a, b)
    return 0.0 if found is None else _area(found)


def _embedded(svg: str) -> str:
    """Make a drawing part of a page: no prologue, as wide as its place, its ids only those referred to."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r' (?:width|height)="[\d.]+pt"', "", element, count=2)
    referred = set(re.findall(r"#([\w-]+)", element))
    element = re.sub(r' id="([\w.-]+)"', lambda match: match[0] if match[1] in referred else "", element)
    return element.replace(INK, "currentColor").strip()
