"""Results: what dominates what, and how they are told and drawn."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowturbo_trt.calibration.tune.candidates import Candidate
from flowturbo_trt.calibration.tune.description import choose, lines, nearest
from flowturbo_trt.calibration.tune.figure import draw
from flowturbo_trt.calibration.tune.front import Budget
from flowturbo_trt.calibration.tune.latency import LatencyModel
from flowturbo_trt.calibration.tune.results import Latency, Result, Tuned
from flowturbo_trt.calibration.tune.search import Tried
from flowturbo_trt.sampling.schedule import Schedule

NOISES = 40
# As a bundle of one name with calls of 4 rows.
PREPARED: Any = SimpleNamespace(
    engines={"mine": None}, main="mine", batch=4, options=SimpleNamespace(reference="H50", held_out=NOISES)
)


def made_up(text: str, ms: float, error: float, spread: float = 0.1, seed: int = 0) -> Result:
    """A result whose errors are around a mean, with noise of its own seed."""
    noise = np.random.default_rng(seed).standard_normal(NOISES)
    candidate = Candidate("mine", Schedule.parse(text))
    latency = Latency(ms, (0.99 * ms, 1.01 * ms), True)
    return Result(
        candidate,
        dict(candidate.schedule.evaluations()),
        error * (1 + spread * (noise - noise.mean())),
        latency,
        1.02 * ms,
    )


BASELINE = made_up("H1P5R3", 10, 0.04)
SLOW = made_up("H8", 20, 0.01)
BETTER = made_up("AB2x6R2", 9, 0.03)
FAST = made_up("AB2x3", 4, 0.2)
TUNED = Tuned(
    {"mine": LatencyModel(4, 0.001, {"predictor guided": 0.005})},
    (FAST, BETTER),
    (BASELINE, SLOW),
    [Tried(r.candidate, r.expected_ms, r.error, rows) for r, rows in ((FAST, 8), (BETTER, 16), (SLOW, 16))],
)


def test_what_dominates_is_not_slower_and_surely_more_exact() -> None:
    assert BETTER.dominates(BASELINE)
    assert replace(BETTER, latency=BASELINE.latency).dominates(BASELINE)
    assert not replace(BETTER, latency=SLOW.latency).dominates(BASELINE)
    assert not SLOW.dominates(BASELINE)
    assert not FAST.dominates(BASELINE)
    # More exact by less than what other noises would change.
    assert not made_up("AB2x6R2", 9, 0.0399, spread=0.5, seed=1).dominates(BASELINE)


def test_ratios_are_of_the_same_noises() -> None:
    half = replace(BASELINE, errors=BASELINE.errors / 2)
    ratio, interval = half.error_ratio(BASELINE)
    assert ratio == pytest.approx(0.5)
    assert interval == pytest.approx((0.5, 0.5))


def test_fronts_are_of_all() -> None:
    assert TUNED.front == [FAST, BETTER, SLOW]
    assert TUNED.dominating == [BETTER]
    assert TUNED.drift == pytest.approx(1 / 1.02)
    assert TUNED.model_error == pytest.approx(0, abs=1e-9)
    off = replace(TUNED, found=(replace(FAST, expected_ms=1.2 * 1.02 * 4), BETTER))
    assert off.model_error == pytest.approx(0.2)


def test_what_is_said() -> None:
    text = lines(PREPARED, TUNED, Budget())
    rows = [line.split() for line in text]
    low, high = FAST.error_interval
    spread = f"{low:.4f}–{high:.4f}"
    assert ["1", "4", "4.08", "0.2000", spread, "3", "0", "AB2x3"] in rows
    # The default schedule is shown below where it is not on the front.
    assert rows[6][-1] == "H1P5R3"
    assert "2: not slower than H1P5R3, the bundle's default, and more exact. AB2x6R2 has 0.75" in text[-1]
    assert "in 9 ms instead of 10" in text[-1]


def test_what_is_said_of_budgets() -> None:
    assert lines(PREPARED, TUNED, Budget(ms=9.5))[-1] == "For 9.5 ms an image: AB2x6R2 (9 ms, error 0.03)."
    nothing = Budget(ms=3)
    assert choose(TUNED, nothing) is None
    assert [result.name for result in nearest(TUNED, nothing)] == ["AB2x3", "AB2x6R2", "H8"]
    assert nearest(TUNED, Budget(ms=9.5)) == nearest(TUNED, Budget()) == []
    assert lines(PREPARED, TUNED, nothing)[-1] == (
        "Nothing meets 3 ms an image. Nearest: AB2x3 (4 ms, error 0.2); AB2x6R2 (9 ms, error 0.03); "
        "H8 (20 ms, error 0.01)."
    )


def test_what_is_said_where_nothing_is_better() -> None:
    text = "\n".join(lines(PREPARED, replace(TUNED, found=(FAST,)), Budget()))
    assert "Nothing was found that is not slower than H1P5R3 and more exact." in text
    shaky = Latency(4, (-math.inf, math.inf), False)
    text = "\n".join(lines(PREPARED, replace(TUNED, found=(replace(FAST, latency=shaky),)), Budget()))
    assert "Not known well are the times of 1 schedules: quieten the machine or give more" in text
    assert "engines" not in text
    models = {name: replace(model, stable=False) for name, model in TUNED.models.items()}
    text = "\n".join(lines(PREPARED, replace(TUNED, models=models), Budget()))
    assert "the times of the engines of mine (what is expected is by these): quieten" in text


def test_columns_only_where_they_tell_something() -> None:
    several: Any = SimpleNamespace(**vars(PREPARED) | {"engines": {"mine": None, "yours": None}})
    judged = replace(
        TUNED,
        own=tuple(replace(result, fid=1.5) for result in TUNED.own),
        found=tuple(replace(result, fid=2.25) for result in TUNED.found),
    )
    head, first = lines(several, judged, Budget(ms=5))[2:4]
    assert head.split()[-3:] == ["FID", "engines", "schedule"]
    assert first.split()[-3:] == ["2.250", "mine", "AB2x3"]
    assert lines(several, judged, Budget(ms=5))[-1].endswith("AB2x3 (4 ms, error 0.2) on mine.")
    assert "FID" not in lines(PREPARED, TUNED, Budget())[2]


def test_the_picture_shows_the_front(tmp_path: Path) -> None:
    draw(PREPARED, TUNED, Budget(ms=9.5), tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for words in (
        "ms per image, 4 rows a call",
        "H1P5R3",
        "its others: H8",
        "with refiner",
        "predictor alone",
    ):
        assert words in text
    assert "winner" in text
    assert "solver table" not in text
    draw(PREPARED, TUNED, Budget(ms=9.5), tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_text(encoding="utf-8") == text
    draw(PREPARED, TUNED, Budget(), tmp_path / "c.svg")
    assert "winner" not in (tmp_path / "c.svg").read_text(encoding="utf-8")
    draw(PREPARED, replace(TUNED, own=(BASELINE,), found=()), Budget(error=0.1), tmp_path / "d.png")
    assert Image.open(tmp_path / "d.png").size == (1080, 720)
