"""The page: complete in itself, equal to the document, safe against names, and as a browser shows it."""

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowturbo_trt.evaluation.comparison import table
from flowturbo_trt.evaluation.comparison.grids import difference, difference_strips, sample_strips
from flowturbo_trt.evaluation.comparison.page import render

from .comparisons import SETTING, made_up
from .conftest import Made
from .pages import Page, open_in_browser


@pytest.fixture
def page(made: Made) -> Path:
    return made.out / "index.html"


def decoded(address: str) -> np.ndarray:
    kind, _, data = address.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_page_needs_nothing_else(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = Page(text)
    assert found.references
    for tag, name, value in found.references:
        assert value.startswith("data:image/png;base64," if tag == "img" else "#"), (tag, name, value[:80])
    # Names of XML's vocabularies are the only addresses, and nobody asks for them.
    addresses = set(re.findall(r"\bhttps?://[^\"'\s<)]+", text))
    assert addresses <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
    assert not re.search(r"url\((?!#)|@import|<link|<iframe|fetch\(|XMLHttpRequest", text)
    assert "Content-Security-Policy\" content=\"default-src 'none'; img-src data:;" in text


def test_table_of_the_page_is_the_document(page: Path, made: Made) -> None:
    rows = Page(page.read_text(encoding="utf-8")).rows
    document = json.loads((made.out / "report.json").read_text(encoding="utf-8"))
    columns = table.columns(made.comparison)
    assert [text for text, _ in rows[0]] == table.headings(made.comparison)
    assert len(rows) - 1 == len(document["rows"]) == 5
    for cells, row in zip(rows[1:], document["rows"], strict=True):
        name, predictor, refiner, *figures = cells
        assert name[0].removesuffix(" baseline") == row["schedule"]
        assert name[0].endswith("baseline") == (row["schedule"] == document["setting"]["baseline"])
        evaluations = row["evaluations"]
        assert (predictor[1], refiner[1]) == (
            str(evaluations["predictor"]),
            str(evaluations.get("refiner", 0)),
        )
        for column, (text, value) in zip(columns, figures, strict=True):
            figure = row["figures"][column.key]
            assert value is not None
            assert float(value) == figure["value"]
            assert text.startswith(column.text(figure["value"]))
            if figure["interval"]:
                assert text.endswith(column.text(figure["interval"][1]))


def test_markdown_holds_the_same_rows(made: Made) -> None:
    text = (made.out / "table.md").read_text(encoding="utf-8")
    assert table.markdown(made.comparison) in text
    for line in table.lines(made.comparison):
        (row,) = (row for row in text.splitlines() if row.startswith(f"| {line.schedule} "))
        assert all(cell.text in row for cell in line.cells)


def test_images_are_those_of_the_schedules(page: Path, made: Made) -> None:
    """In rows as they are compared, the fine trajectory last, then the differences in the same places."""
    shown = made.comparison.shown
    addresses = [value for tag, _, value in Page(page.read_text(encoding="utf-8")).references if tag == "img"]
    images = np.stack([decoded(address) for address in addresses])
    names = [row.schedule for row in made.comparison.rows]
    expected = [shown.images[name] for name in names] + [shown.truth]
    expected += [difference(shown.images[name], shown.truth) for name in names]
    assert np.array_equal(images, np.concatenate(expected))
    assert len(shown.truth) == 20


def test_differences_are_magnified_and_clipped() -> None:
    images = np.array([0, 10, 100, 255], np.uint8).reshape(1, 2, 2, 1).repeat(3, axis=3)
    truth = np.array([3, 10, 20, 0], np.uint8).reshape(1, 2, 2, 1).repeat(3, axis=3)
    assert difference(images, truth)[0, ..., 0].ravel().tolist() == [12, 0, 255, 255]


def test_strips_keep_colours_and_order() -> None:
    shown = made_up().shown
    strips = sample_strips(shown, "H100")
    assert [strip.name for strip in strips] == ["H8", "H1P5R3", "E4", "H100"]
    assert np.array_equal(np.stack([decoded(image) for image in strips[1].images]), shown.images["H1P5R3"])
    assert [strip.name for strip in difference_strips(shown)] == ["H8", "H1P5R3", "E4"]


def test_names_are_text_and_nothing_else() -> None:
    nasty = '<script>alert("1")</script><img src=http://x/y>'
    comparison = made_up(setting=replace(SETTING, bundle=nasty, reference=nasty), notes=(nasty,))
    text = render(comparison)
    assert nasty not in text
    assert text.count("<script") == 1
    assert "&lt;script&gt;alert" in text
    found = Page(text)
    assert not any("http" in value for _, _, value in found.references)


def test_an_unknown_figure_has_no_value() -> None:
    rows = Page(render(made_up())).rows
    assert rows[3][6] == ("–", None)


def test_browser_shows_the_page(page: Path, made: Made) -> None:
    """The document after its script has run: every row, headings that sort, nothing on the console."""
    dom, console = open_in_browser(page, "--dump-dom")
    assert console == []
    for row in made.comparison.rows:
        assert re.search(rf'<th scope="row">{re.escape(row.schedule)}\b', dom)
    assert dom.count("<button>") == len(table.headings(made.comparison))


MEASURE = """<script>addEventListener("load", () => {
const size = (element) => { const box = element.getBoundingClientRect(); return [box.width, box.height]; };
document.querySelectorAll("thead button")[4].click();
document.title = JSON.stringify({
  svg: [...document.querySelectorAll("svg")].map(size),
  names: [...document.querySelectorAll("svg text")].map(size),
  images: [...document.images].map(image => [image.naturalWidth, image.complete, ...size(image)]),
  overflow: document.documentElement.scrollWidth > innerWidth,
  order: [...document.querySelectorAll(".figures tbody tr")].map(row => Number(row.cells[4].dataset.value)),
}); });</script>"""


def measured(page: Path, folder: Path, *flags: str) -> dict[str, list[list[float]]]:
    """Open a copy of the page that tells the sizes of what it shows, its table sorted by latency."""
    copy = folder / "measured.html"
    copy.write_text(
        page.read_text(encoding="utf-8").replace("</body>", MEASURE + "</body>"), encoding="utf-8"
    )
    dom, console = open_in_browser(copy, "--dump-dom", *flags)
    assert console == []
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    sizes: dict[str, list[list[float]]] = json.loads(title[1].replace("&amp;", "&"))
    return sizes


@pytest.mark.parametrize("width", [1400, 500])
def test_browser_gives_everything_room(page: Path, tmp_path: Path, width: int) -> None:
    """On a desk and on a phone: plots and images have their sizes, and the page fits its window."""
    sizes = measured(page, tmp_path, f"--window-size={width},1000")
    assert len(sizes["svg"]) == 2
    for across, down in sizes["svg"]:
        assert across > 0.4 * min(width, 1000)
        assert down == pytest.approx(across * 302.4 / 417.6, rel=0.02)
    assert all(min(size) > 4 for size in sizes["names"])
    assert len(sizes["images"]) == 20 * (5 + 1 + 5)
    for natural, complete, across, down in sizes["images"]:
        assert (natural, complete) == (8, True)
        assert across == down >= 40
    assert sizes["overflow"] is False
    assert sizes["order"] == sorted(sizes["order"])


@pytest.mark.parametrize(
    ("flags", "is_dark"), [((), False), (("--blink-settings=preferredColorScheme=0",), True)]
)
def test_browser_draws_the_page(page: Path, tmp_path: Path, flags: tuple[str, ...], is_dark: bool) -> None:
    """A picture that is not blank, on paper that follows the reader's choice of light or dark."""
    file = tmp_path / "page.png"
    open_in_browser(page, "--window-size=1200,2400", f"--screenshot={file}", *flags)
    with Image.open(file) as opened:
        picture = np.asarray(opened.convert("RGB")).astype(int)
    assert picture.shape == (2400, 1200, 3)
    paper = picture[-1, 0]
    assert (paper.mean() < 60) == is_dark
    marks = np.abs(picture - paper).max(axis=2) > 60
    # Words, lines and digits, in every part of it that is filled.
    for part in np.split(marks[:1800], 6):
        assert 0.002 < part.mean() < 0.6
    for colour in ((209, 73, 91), (61, 127, 217)):
        assert (np.abs(picture - colour).max(axis=2) < 12).sum() > 20
