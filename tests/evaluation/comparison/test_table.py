"""The table: one set of cells, words and marks that follow from the figures."""

from dataclasses import replace

import pytest

from flowturbo_trt.evaluation.comparison import wording
from flowturbo_trt.evaluation.comparison.findings import Figure
from flowturbo_trt.evaluation.comparison.table import columns, lines, markdown, significant

from .comparisons import ROWS, SETTING, made_up, row

TABLE = """\
| schedule | predictor evaluations | refiner evaluations | GFLOP per image ↓ | ms per image ↓ | acceleration ↑ | FID ↓ | endpoint error ↓ |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| H8 (baseline) | 16 | 0 | 12655 | 100 | 0.0% | 3.68 | **1.0%** (0.9 to 1.1%) |
| H1P5R3 | 7 | 6 | 4046 | 40.0 (39.5 to 41.2) | 60.0% (59.0 to 61.0%) | **2.50** (2.25 to 2.75) | 2.0% |
| E4 | 4 | 0 | **1948** | **25.0** | **75.0%** | – | 20.0% |"""  # noqa: E501


def test_markdown() -> None:
    assert markdown(made_up()).replace("\N{NO-BREAK SPACE}", " ") == TABLE


def test_cells_keep_the_numbers_they_tell() -> None:
    table = lines(made_up())
    assert [line.evaluations for line in table] == [(16, 0), (7, 6), (4, 0)]
    assert [line.is_baseline for line in table] == [True, False, False]
    assert [cell.value for cell in table[2].cells] == [1948.0, 25.04, 0.75, None, 0.2]


def test_what_reads_the_same_is_marked_the_same() -> None:
    rows = (row("H1", 2, fid=1.2341), row("H2", 4, fid=1.2339), row("H3", 6, fid=1.24))
    assert [line.cells[0].is_best for line in lines(made_up(rows=rows))] == [True, True, False]


def test_nothing_is_best_among_equals() -> None:
    rows = (row("H1", 2, fid=1.0), row("H2", 4, fid=1.0))
    assert not any(cell.is_best for line in lines(made_up(rows=rows)) for cell in line.cells)
    assert not any(cell.is_best for line in lines(made_up(rows=ROWS[:1])) for cell in line.cells)


def test_columns_follow_the_figures() -> None:
    """A metric nobody measured has no column; more of a higher-is-better metric is best."""
    rows = (row("H1", 2, inception_score=3.0, recall=0.25), row("H2", 4, inception_score=4.0, recall=0.125))
    comparison = made_up(rows=rows)
    assert [column.key for column in columns(comparison)] == ["inception_score", "recall"]
    assert [cell.text for cell in lines(comparison)[0].cells] == ["3.00", "25.0%"]
    assert [cell.is_best for cell in lines(comparison)[1].cells] == [True, False]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12655.4, "12655"), (4046, "4046"), (99.96, "99.96"), (1.5, "1.500"), (0.00123456, "0.001235"),
     (-0.0195, "-0.01950")],
)  # fmt: skip
def test_significant_digits(value: float, text: str) -> None:
    assert significant(value, 4) == text


def test_intervals_without_ends_are_left_out() -> None:
    assert Figure.bounded(1.0, (float("-inf"), float("inf"))) == Figure(1.0)
    assert Figure.bounded(1.0, (0.5, 1.5)) == Figure(1.0, (0.5, 1.5))
    assert Figure.read(Figure(1.0, (0.5, 1.5)).describe()) == Figure(1.0, (0.5, 1.5))
    assert Figure.read(Figure(1.0).describe()) == Figure(1.0)


def test_summary_says_what_and_how() -> None:
    words = wording.summary(made_up())
    for part in (
        "3 schedules generated the same 2,000 images each",
        "with balanced labels and guidance 1.5",
        "(onnxruntime, fp32, on cpu: 2 cores of a CPU)",
        "features of features.onnx against 10,000 images of real, and timed",
        "is H8.",
    ):
        assert part in words
    other = wording.summary(
        made_up(
            setting=replace(SETTING, reference_count=None, provider="cuda"),
            machine={"cpu": "a CPU", "cores": 2, "system": "Linux", "gpu": "an H200, 580"},
        )
    )
    assert "(onnxruntime (cuda), fp32, on cpu: an H200, 580 beside 2 cores of a CPU)" in other
    assert "against real, and timed" in other


def test_notes_of_all_are_said_once() -> None:
    assert wording.notes(made_up()) == ["something of all", "shared", "H8: mine", "H1P5R3: own"]


def test_legend_explains_what_is_there() -> None:
    terms = wording.legend(made_up())
    assert terms["steps"] == "H: Heun, P: pseudo-corrector, R: velocity refiner, E: Euler"
    assert "622 of it the decoder's" in terms["GFLOP per image"]
    assert "in batches of 8" in terms["GFLOP per image"]
    assert "decoder included, in batches of 8" in terms["ms per image"]
    assert terms["acceleration"].startswith("1 − t / t(H8)")
    assert "mean of 200 images" in terms["endpoint error"]
    assert "FID" in terms
    assert "KID" not in terms
    without = made_up(rows=tuple(replace(r, figures={"fid": Figure(1.0)}) for r in ROWS))
    assert "GFLOP per image" not in wording.legend(without)


def test_markdown_file_holds_all_of_it() -> None:
    comparison = made_up()
    text = wording.as_markdown(comparison, markdown(comparison))
    for part in (wording.title(comparison), wording.summary(comparison), markdown(comparison), "H1P5R3: own",
                 "b" * 64, "e" * 64, "f" * 64, "seed 3", "numpy 2.4", "2026-01-02 03:04 UTC"):  # fmt: skip
        assert part in text
