"""The heat map: every number where it belongs, in the picture and beside it."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from flowturbo_trt.calibration.precision.groups import Group
from flowturbo_trt.calibration.precision.heat_map import draw, save_heat_map
from flowturbo_trt.calibration.precision.sensitivity import Sensitivity
from flowturbo_trt.calibration.recording.call_sites import CallSite

SITES = (
    CallSite("H1", 0, "predictor", "guided", 0.0),
    CallSite("H1", 1, "predictor", "guided", 1.0),
    CallSite("H1R1", 2, "refiner", "guided", 0.5),
)
GROUPS = tuple(
    Group(f"{network} blocks.0.attn.qkv", network, {}, 1.0) for network in ("predictor", "refiner")
)
NONE = np.nan
VELOCITY = np.array([[0.01, 0.02, NONE], [NONE, NONE, 0.4]])


def make(velocity: NDArray[np.float64] = VELOCITY, trajectory: float = 0.03) -> Sensitivity:
    ends = np.array([[trajectory, 2 * trajectory], [0.0, trajectory]])
    return Sensitivity(GROUPS, SITES, ("H1", "H1R1"), velocity, ends)


def filled(figure: Figure, panel: int) -> NDArray[np.float64]:
    (image,) = figure.axes[panel].get_images()
    return np.ma.filled(np.ma.masked_invalid(image.get_array()), NONE)


def test_cells() -> None:
    """Errors lie in their rows and columns; those of no call, and of 0, have no colour."""
    figure = draw(make(), (), "title")
    np.testing.assert_array_equal(filled(figure, 0), VELOCITY)
    np.testing.assert_array_equal(filled(figure, 1), [[0.03, 0.06], [NONE, 0.03]])


def test_words() -> None:
    figure = draw(make(), {"refiner blocks.0.attn.qkv"}, "what it is of")
    left, right = figure.axes[:2]
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == ["blocks.0.attn.qkv", "refiner blocks.0.attn.qkv  ○"]
    assert left.get_ylabel() == "○ put back to floating point"
    assert [label.get_text() for label in left.get_xticklabels()] == ["0.00", "1.00", "0.50"]
    assert [label.get_text() for label in right.get_xticklabels()] == ["H1", "H1R1"]
    assert {text.get_text() for text in left.texts} == {"H1", "H1R1"}
    bars = [axes.get_xlabel() for axes in figure.axes[2:]]
    assert bars == ["relative L2 of the velocity", "relative L2 of the latents"]
    assert figure.get_suptitle() == "what it is of"
    assert draw(make(), (), "").axes[0].get_ylabel() == ""


def test_files(tmp_path: Path) -> None:
    numbers = save_heat_map(make(), ["refiner blocks.0.attn.qkv"], "title", tmp_path / "heat.png")
    assert numbers == tmp_path / "heat.json"
    data = json.loads(numbers.read_text(encoding="utf-8"))
    assert data["groups"][0]["velocity"] == [0.01, 0.02, None]
    assert data["groups"][1]["trajectory"] == {"H1": 0.0, "H1R1": 0.03}
    assert (data["title"], data["put_back"]) == ("title", ["refiner blocks.0.attn.qkv"])
    with Image.open(tmp_path / "heat.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 250
    again = tmp_path / "again.png"
    save_heat_map(make(), ["refiner blocks.0.attn.qkv"], "title", again)
    assert again.read_bytes() == (tmp_path / "heat.png").read_bytes()


@pytest.mark.parametrize("error", [0.0, 0.02])
def test_nothing_to_tell_apart(error: float, tmp_path: Path) -> None:
    """Errors that are all alike, or all zero, still make a picture with a scale."""
    sensitivity = make(np.full_like(VELOCITY, error), error)
    figure = draw(sensitivity, (), "title")
    low, high = figure.axes[0].get_images()[0].get_clim()
    assert low is not None
    assert high is not None
    assert high / low >= 4
    save_heat_map(sensitivity, (), "title", tmp_path / "heat.png")


def test_many_calls_and_long_schedules() -> None:
    text = "H4@0.0,0.123456789,0.4,0.6,1.0"
    sites = tuple(CallSite(text, i, "predictor", "guided", i / 200) for i in range(200))
    sensitivity = Sensitivity(GROUPS, sites, (text,), np.full((2, 200), 0.1), np.full((2, 1), 0.1))
    left, right = draw(sensitivity, (), "title").axes[:2]
    assert len(left.get_xticks()) == 60
    assert [label.get_text() for label in right.get_xticklabels()] == ["H4@0.0,0.1234…"]
