"""What is read of recipes in a manifest, which may be anybody's."""

from typing import Any

import pytest

from flowturbo_trt.export.recipe_notes import RecipeNote, read_notes

ENTRY: dict[str, Any] = {
    "file": "r.json",
    "sha256": "ab" * 32,
    "kind": "int8",
    "passed": True,
    "timed": ["onnxruntime"],
    "emulated": [],
    "schedules": ["H8", "H1P5R3"],
    "findings": {"budgets": {"H8": 0.05, "H1P5R3": 0.2}},
}


def test_note() -> None:
    note = RecipeNote(
        "r.json", "ab" * 32, "int8", True, ("onnxruntime",), (), ("H8", "H1P5R3"), ENTRY["findings"]
    )
    assert read_notes({"recipes": [ENTRY, ENTRY | {"more": 1}]}) == (note, note)
    assert note.budget == 0.2


@pytest.mark.parametrize("options", [{}, {"recipes": []}])
def test_bundle_without_recipes(options: dict[str, Any]) -> None:
    assert read_notes(options) == ()


@pytest.mark.parametrize(
    "entry",
    [
        *("r.json", None, {}, []),
        *({name: value for name, value in ENTRY.items() if name != left_out} for left_out in ENTRY),
        *(ENTRY | {name: 7} for name in ENTRY),
        *(ENTRY | {name: [7]} for name in ("timed", "emulated", "schedules")),
    ],
)
def test_entry_of_another_form(entry: object) -> None:
    assert read_notes({"recipes": [ENTRY, entry]})[1] is None


@pytest.mark.parametrize("recipes", [None, "r.json", {}, 7])
def test_recipes_that_are_no_list(recipes: object) -> None:
    assert read_notes({"recipes": recipes}) == (None,)


@pytest.mark.parametrize(
    "budgets", [None, 0.1, [], {}, {"H8": "0.1"}, {"H8": True}, {"H8": -1.0}, {"H8": float("nan")}]
)
def test_budgets_that_are_none(budgets: object) -> None:
    (note,) = read_notes({"recipes": [ENTRY | {"findings": {"budgets": budgets}}]})
    assert note is not None
    assert note.budget is None
