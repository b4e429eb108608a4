"""`calibrate solver` on the tiny bundle: a table that the bundle keeps, and other commands run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.sampling.schedule import Schedule

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., Result]
QUICK = ("--evaluations", 3, "--steps", 4, "--batch", 4, "--trajectories", 8, "--held-out", 4, "--judged", 4)
COARSE = (*QUICK, "--reference", "H10", "--threads", 1)


def test_table_in_the_bundle(run: Run, tiny_copy: Path, here: Path) -> None:
    before = Bundle.open(tiny_copy).manifest
    text = run("calibrate", "solver", tiny_copy, *COARSE, "--save").stdout
    assert text.startswith("table:lms3: fitted in 4 steps, ")
    assert "mean of noises that it was not fitted on" in text
    assert [line.split()[0] for line in text.splitlines()[2:]] == [
        "table:lms3",
        before.default_schedule,
        "AB2x3",
    ]
    manifest = Bundle.open(tiny_copy).manifest
    assert manifest.default_schedule == before.default_schedule
    (table,) = manifest.tables
    assert table.name == "lms3"
    sampled = run("sample", tiny_copy, "--labels", "0", "--schedule", "table:lms3", "--out", here / "a.png")
    assert "table:lms3" in sampled.stdout
    assert "table:lms3" in run("inspect", tiny_copy).stdout


def test_new_default(run: Run, tiny_copy: Path) -> None:
    run("calibrate", "solver", tiny_copy, *COARSE, "--refined", 1, "--name", "mine", "--default")
    manifest = Bundle.open(tiny_copy).manifest
    assert manifest.default_schedule == "table:mine"
    assert manifest.schedule().evaluations() == {"predictor": 3, "refiner": 1}


def test_document(document: Callable[..., dict[str, Any]], tiny_copy: Path, here: Path) -> None:
    """Is what --out holds too; the bundle is left alone without --save."""
    manifest = Bundle.open(tiny_copy).manifest
    scales = ("--guidance", 2, "--guidance", 3, "--also-at", 1)
    found = document("calibrate", "solver", tiny_copy, *COARSE, *scales, "--out", here / "table.json")
    assert json.loads((here / "table.json").read_text(encoding="utf-8")) == found
    assert found["table"]["name"] == "lms3"
    assert len(found["table"]["weights"]) == 3
    assert set(found["initial_errors"]) == {"1", "2", "3", "4"}
    assert set(found["endpoint_errors_at"]) == {"1"}
    assert found["looks"][0]["trained_error"] is None
    assert Bundle.open(tiny_copy).manifest == manifest


def test_table_goes_into_other_builds(
    run: Run, tiny_copy: Path, tiny_options: BuildOptions, here: Path, instant_export: list[str]
) -> None:
    run("calibrate", "solver", tiny_copy, *COARSE, "--refined", 1, "--out", here / "table.json")
    checkpoints = [
        word
        for role in ("predictor", "refiner", "decoder", "config")
        for word in (f"--{role}", getattr(tiny_options, role))
    ]
    run("build", here / "other", *checkpoints, "--table", here / "table.json")
    manifest = Bundle.open(here / "other").manifest
    assert manifest.tables[0].name == "lms3r1"
    assert "table:lms3r1" in manifest.programs


def test_other_scales_in_words(run: Run, tiny_copy: Path, here: Path) -> None:
    text = run("calibrate", "solver", tiny_copy, *COARSE, "--also-at", 3, "--out", here / "t.json").stdout
    assert "at guidance 3, which it was not fitted at:" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--save", "--reference", "H2"], "evaluates the predictor 4 times, expected at least 6"),
        (["--save", "--guidance", "nan"], "guidance"),
        (["--out", "nowhere/t.json"], "nowhere/t.json: cannot be written"),
        (["--save", "--steps", "0"], "steps is 0, expected at least 1"),
        (["--save", "--minutes", "0"], "seconds > 0"),
        (["--save", "--batch", "9"], "batch is 9, there are 8 trajectories"),
    ],
)
def test_mistakes(
    fails: Callable[..., str], tiny_copy: Path, here: Path, words: list[str], message: str
) -> None:
    assert message in fails("calibrate", "solver", tiny_copy, *COARSE, *words)


def test_name_that_is_taken(fails: Callable[..., str], run: Run, tiny_copy: Path) -> None:
    run("calibrate", "solver", tiny_copy, *COARSE, "--save")
    again = fails("calibrate", "solver", tiny_copy, *COARSE, "--seed", 5, "--save")
    assert again == "the bundle has a table lms3 already; give another name"


def test_name_that_is_taken_elsewhere(run: Run, tiny_copy: Path, here: Path) -> None:
    """A file does not mind."""
    run("calibrate", "solver", tiny_copy, *COARSE, "--save")
    run("calibrate", "solver", tiny_copy, *COARSE, "--seed", 5, "--out", here / "other.json")
    assert json.loads((here / "other.json").read_text())["table"]["name"] == "lms3"


def test_schedule_reads_as_it_is_written(run: Run, tiny_copy: Path) -> None:
    run("calibrate", "solver", tiny_copy, *COARSE, "--save")
    manifest = Bundle.open(tiny_copy).manifest
    assert str(Schedule.parse("table:lms3", manifest.tables)) == "table:lms3"
