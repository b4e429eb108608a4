"""Recipes as files: what is written is read again, and what is no recipe is told apart."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.export.quantization import QuantizedLinear, Recipe, RecipeError, load_recipe, save_recipe

RECIPE = Recipe(
    "int8",
    {"predictor guided": {"blocks.0.mlp.fc2": QuantizedLinear(0.1, (1.0, 2.5)), "a": QuantizedLinear(2.0)}},
    {"predictor": "ab" * 32},
    True,
    {"trajectory_error": 0.03},
    guided_channels=3,
    schedules=("H8", "H1P5R3"),
    timed=("onnxruntime",),
)


def test_recipe_as_file(tmp_path: Path) -> None:
    save_recipe(RECIPE, tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json") == RECIPE


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d.update(format="other"), r"is no recipe; make one with `flowturbo_trt calibrate prec"),
        (lambda d: d.update(version=2), r"recipe version 2, this reader knows 1; calibrate again"),
        (lambda d: d.update(kind="int4"), r"is damaged \(recipe of kind 'int4', expected int8 or fp8\)"),
        (lambda d: d.update(kind=["int8"]), r"is damaged \(TypeError"),
        (lambda d: d.update(layers=[]), r"is damaged \(AttributeError"),
        (lambda d: d.update(sources="x"), r"is damaged \(AttributeError"),
        (lambda d: d.pop("passed"), r"is damaged \(KeyError 'passed'\)"),
        (lambda d: d.pop("guided_channels"), r"is damaged \(KeyError 'guided_channels'\)"),
        (lambda d: d.update(schedules="H8"), r"is damaged \(TypeError 'H8' is no list\)"),
        (lambda d: d.update(timed={"onnxruntime": True}), r"is damaged \(TypeError .* is no list\)"),
        (lambda d: d["layers"]["predictor guided"]["a"].pop("scale"), r"is damaged \(KeyError 'scale'\)"),
        (lambda d: d["layers"]["predictor guided"]["a"].update(scale="x"), r"is damaged \(ValueError"),
        (lambda d: d["layers"]["predictor guided"]["a"].update(smooth=None), r"is damaged \(TypeError"),
    ],
)
def test_damaged_recipe(tmp_path: Path, change: Callable[[Any], object], complaint: str) -> None:
    path = tmp_path / "recipe.json"
    save_recipe(RECIPE, path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(RecipeError, match=rf"recipe\.json: {complaint}") as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"null", b"[" * 100_000])
def test_file_that_is_no_recipe(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.json"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"recipe\.json: (cannot be read|is no recipe)"):
        load_recipe(path)


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.json: cannot be read .*No such file"):
        load_recipe(tmp_path / "none.json")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["scale", "smooth"])
def test_scales_that_are_none(value: float, where: str) -> None:
    layer = QuantizedLinear(value) if where == "scale" else QuantizedLinear(1.0, (1.0, value))
    with pytest.raises(RecipeError, match="refiner guided, a: its scales are not all positive numbers"):
        replace(RECIPE, layers={"refiner guided": {"a": layer}})
