"""What of a recipe and of a build do not belong together: refused, or told where the rest still holds."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.export.build import build
from flowturbo_trt.export.graphs import Exportable
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.export.quantization import Recipe, RecipeError
from flowturbo_trt.tests.export.recipes import recipe_for, saved

BOTH = ("guided", "unguided")


@pytest.fixture(scope="module")
def recipe(tiny_bundle: Path) -> Recipe:
    return recipe_for(tiny_bundle)


class BegunError(Exception):
    """All has been checked, and the first network is exported."""


@pytest.fixture
def told(
    tiny_options: BuildOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """Give a function that begins a build with a recipe and returns what was said of it."""

    def export_one(item: Exportable, folder: Path) -> list[Path]:
        raise BegunError

    monkeypatch.setattr("flowturbo_trt.export.build.export_one", export_one)

    def texts(recipe: Recipe, changes: dict[str, Any] | None = None, **options: Any) -> list[str]:
        path = saved(recipe, tmp_path / "r.json", **changes or {})
        said: list[str] = []
        made = replace(tiny_options, precisions=("int8",), recipes=(path,), **options)
        with pytest.raises(BegunError):
            build(made, tmp_path / "bundle", say=said.append)
        return [text.removeprefix(f"{path}: ") for text in said if text.startswith(str(path))]

    return texts


def test_what_belongs_together(told: Callable[..., list[str]], recipe: Recipe) -> None:
    assert told(recipe) == []


def test_refiner_that_the_gate_did_not_see(told: Callable[..., list[str]], recipe: Recipe) -> None:
    """It is not quantised, and yet part of what was judged."""
    sources = {**recipe.sources, "refiner": "0" * 64}
    with pytest.raises(RecipeError, match="was made for another refiner checkpoint than the one given"):
        told(recipe, {"sources": sources})
    # A build without it has nothing that is another.
    assert told(recipe, {"sources": sources}, refiner=None, schedules=("H2",)) == []


def test_guidance_of_other_channels(
    told: Callable[..., list[str]], tiny_options: BuildOptions, recipe: Recipe, tmp_path: Path
) -> None:
    assert tiny_options.config is not None
    config = json.loads(tiny_options.config.read_text()) | {"guided_channels": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    complaint = r"was made with guided_channels 2, the configuration's are 1; calibrate a bundle of this conf"
    with pytest.raises(RecipeError, match=complaint):
        told(recipe, config=tmp_path / "config.json")
    unguided = {"layers": {"predictor unguided": recipe.layers["predictor guided"]}}
    assert told(recipe, unguided, config=tmp_path / "config.json", variants=("unguided",)) == []


def test_schedules_that_the_gate_did_not_judge(told: Callable[..., list[str]], recipe: Recipe) -> None:
    schedules = ("H1P1R1", "H2", "H3", "H4")
    assert told(recipe, schedules=schedules) == [
        "its gate judged H1P1R1, H2, not H3, H4; see what `flowturbo_trt verify --schedule` says"
    ]
    (text,) = told(recipe, {"schedules": ()}, schedules=("H2",))
    assert text.startswith("its gate judged no schedule, not H2; see")


def test_variant_without_layers(told: Callable[..., list[str]], recipe: Recipe) -> None:
    assert told(recipe, variants=BOTH) == [
        "has no layers of predictor unguided, only of predictor guided: it is not quantised"
    ]


def test_network_that_is_not_built(told: Callable[..., list[str]], tiny_bundle: Path) -> None:
    recipe = recipe_for(tiny_bundle, networks=("predictor guided", "refiner guided"))
    assert told(recipe, refiner=None, schedules=("H2",)) == [
        "quantises refiner guided as well, which this build does not have"
    ]
