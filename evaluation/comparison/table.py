"""The table of a comparison: the same cells, whether written as Markdown or drawn as HTML."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from flowturbo_trt.evaluation.comparison.findings import Comparison, Figure, Row
from flowturbo_trt.evaluation.quality.judge import METRICS

ARROWS = {"lower": "↓", "higher": "↑"}
UNKNOWN = "–"


def significant(value: float, digits: int) -> str:
    """Write a number with so many significant digits, never in powers of ten."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


@dataclass(frozen=True)
class Column:
    """Figures of one kind; `better` is None where neither more nor less is."""

    key: str
    title: str
    better: Literal["lower", "higher"] | None
    text: Callable[[float], str]

    @property
    def is_share(self) -> bool:
        return self.text is percent

    @property
    def heading(self) -> str:
        return f"{self.title}\N{NO-BREAK SPACE}{ARROWS[self.better]}" if self.better else self.title

    def best(self, figures: Sequence[Figure]) -> str | None:
        """Return the text of the best of several figures, if any is better than another."""
        texts = {self.text(figure.value) for figure in figures}
        if self.better is None or len(texts) < 2:
            return None
        choose = min if self.better == "lower" else max
        return self.text(choose(figure.value for figure in figures))


_THREE, _FOUR = partial(significant, digits=3), partial(significant, digits=4)
_OWN = (
    Column("gflop", "GFLOP per image", "lower", _FOUR),
    Column("ms_per_image", "ms per image", "lower", _THREE),
    Column("acceleration", "acceleration", "higher", percent),
)
_LAST = Column("endpoint_error", "endpoint error", "lower", percent)
_PERCENTAGES = ("recognised", "precision", "recall")


def columns(comparison: Comparison) -> tuple[Column, ...]:
    """Return the columns of which any row knows a figure."""
    judged = (
        Column(name, metric.title, metric.better, percent if name in _PERCENTAGES else _THREE)
        for name, metric in METRICS.items()
    )
    known = {key for row in comparison.rows for key in row.figures}
    return tuple(column for column in (*_OWN, *judged, _LAST) if column.key in known)


@dataclass(frozen=True)
class Cell:
    """One figure as text; `value` is what it is sorted by."""

    text: str
    interval: str = ""
    value: float | None = None
    is_best: bool = False


@dataclass(frozen=True)
class Line:
    """One row as text: schedule, evaluations, then a cell for each column."""

    schedule: str
    is_baseline: bool
    evaluations: tuple[int, int]
    cells: tuple[Cell, ...]


def lines(comparison: Comparison) -> list[Line]:
    """Put every figure into words, the best of each column marked."""
    shown = columns(comparison)
    best = {
        column.key: column.best(
            [row.figures[column.key] for row in comparison.rows if column.key in row.figures]
        )
        for column in shown
    }
    return [
        Line(
            row.schedule,
            row.schedule == comparison.setting.baseline,
            (row.evaluations.get("predictor", 0), row.evaluations.get("refiner", 0)),
            tuple(_cell(column, row, best[column.key]) for column in shown),
        )
        for row in comparison.rows
    ]


def _cell(column: Column, row: Row, best: str | None) -> Cell:
    figure = row.figures.get(column.key)
    if figure is None:
        return Cell(UNKNOWN)
    text = column.text(figure.value)
    return Cell(text, _bounds(column, figure), figure.value, text == best)


def _bounds(column: Column, figure: Figure) -> str:
    if figure.interval is None:
        return ""
    low, high = map(column.text, figure.interval)
    return f"{low.removesuffix('%')} to {high}"


def headings(comparison: Comparison) -> list[str]:
    return [
        "schedule",
        "predictor evaluations",
        "refiner evaluations",
        *(column.heading for column in columns(comparison)),
    ]


def markdown(comparison: Comparison) -> str:
    """Write the table as Markdown: the best of a column bold, 95 % intervals in parentheses."""
    titles = headings(comparison)
    rows = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for line in lines(comparison):
        name = f"{line.schedule} (baseline)" if line.is_baseline else line.schedule
        rows.append([name, *map(str, line.evaluations), *map(_written, line.cells)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _written(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.is_best else cell.text
    return f"{text} ({cell.interval})" if cell.interval else text
