"""What a manifest says of the recipes its 8-bit engines were made with: written by `build`, read by others.

A manifest may come from elsewhere, so that nothing in it is taken for granted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

OPTION = "recipes"
_TEXTS, _LISTS = ("file", "sha256", "kind"), ("timed", "emulated", "schedules")


@dataclass(frozen=True)
class RecipeNote:
    """A recipe as it was when its gate judged it.

    `timed` are the backends on which it was measured to be faster, `emulated` those it was built for that
    have no such arithmetic, `schedules` what was judged.
    """

    file: str
    sha256: str
    kind: str
    passed: bool
    timed: tuple[str, ...]
    emulated: tuple[str, ...]
    schedules: tuple[str, ...]
    findings: Mapping[str, Any]

    @property
    def budget(self) -> float | None:
        """The largest mean trajectory error that the gate let pass; None where none is told."""
        budgets = self.findings.get("budgets")
        told = budgets.values() if isinstance(budgets, Mapping) else ()
        return max((float(b) for b in told if type(b) in (int, float) and 0 < b < math.inf), default=None)


def read_notes(options: Mapping[str, Any]) -> tuple[RecipeNote | None, ...]:
    """Return the notes in a manifest's options, None in place of each that has another form."""
    entries = options.get(OPTION, [])
    return tuple(map(_read, entries)) if isinstance(entries, list) else (None,)


def _read(entry: object) -> RecipeNote | None:
    if not isinstance(entry, Mapping) or not entry.keys() >= {each.name for each in fields(RecipeNote)}:
        return None
    lists = [entry[name] for name in _LISTS]
    if not _are_texts([entry[name] for name in _TEXTS]) or not all(map(_are_texts, lists)):
        return None
    if not isinstance(entry["passed"], bool) or not isinstance(entry["findings"], Mapping):
        return None
    texts: Mapping[str, Any] = {name: entry[name] for name in _TEXTS}
    several: Mapping[str, Any] = {name: tuple(entry[name]) for name in _LISTS}
    return RecipeNote(passed=entry["passed"], findings=entry["findings"], **texts, **several)


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
