"""A comparison as one HTML page that needs nothing else: no file beside it, and no network."""

from typing import Any

import jinja2
from markupsafe import Markup

from flowturbo_trt.evaluation.comparison import wording
from flowturbo_trt.evaluation.comparison.findings import Comparison
from flowturbo_trt.evaluation.comparison.grids import MAGNIFICATION, difference_strips, sample_strips
from flowturbo_trt.evaluation.comparison.plot import Point, draw
from flowturbo_trt.evaluation.comparison.table import columns, headings, lines

TEMPLATE = "page.html.jinja"
# Small images are drawn as large as this, in CSS pixels, and large ones no larger.
CELL_PIXELS = (56, 128)


def render(comparison: Comparison) -> str:
    """Return the page: summary, table, plots, images from the same noise, configuration."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flowturbo_trt.evaluation.comparison", package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = comparison.shown
    return environment.get_template(TEMPLATE).render(
        title=wording.title(comparison),
        summary=wording.summary(comparison),
        legend=wording.legend(comparison),
        notes=wording.notes(comparison),
        configuration=wording.configuration(comparison),
        headings=headings(comparison),
        lines=lines(comparison),
        plots=plots(comparison),
        samples=sample_strips(shown, comparison.setting.truth),
        differences=difference_strips(shown),
        magnification=MAGNIFICATION,
        truth=comparison.setting.truth,
        noises=list(zip(shown.labels, shown.seeds, strict=True)),
        side=_side(shown.truth.shape[1]),
    )


def plots(comparison: Comparison) -> list[dict[str, Any]]:
    """Draw against latency what the first metric says, and the endpoint error: name and picture of each."""
    chosen = [c for c in columns(comparison) if c.key in (comparison.setting.metrics[0], "endpoint_error")]
    drawn = []
    for column in chosen:
        points = [
            Point(row.schedule, row.is_refined, row.figures["ms_per_image"], row.figures[column.key])
            for row in comparison.rows
            if column.key in row.figures
        ]
        picture = draw(
            points,
            column.heading,
            lower_is_better=column.better == "lower",
            as_percent=column.is_share,
        )
        # The drawing's own words are escaped by what draws it.
        drawn.append({"name": column.title, "svg": Markup(picture)})
    return drawn


def _side(height: int) -> int:
    least, most = CELL_PIXELS
    return min(max(height, least), most)
