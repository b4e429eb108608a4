from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import read_manifest
from flowturbo_trt.runtime.request import RequestError
from flowturbo_trt.sampling.schedule import ScheduleError
from flowturbo_trt.serving.triton.requests import group_rows, read_rows

SCHEDULES = ("H1P1R1", "H2")


@pytest.fixture(scope="module")
def manifest(golden_bundle: Path) -> Manifest:
    """Of a bundle with both variants, whose default guidance is no 1."""
    return read_manifest(golden_bundle)


def given(labels: list[int], **columns: list[Any]) -> dict[str, NDArray[Any]]:
    """Return tensors (rows,1) as a server hands them over; seeds are 0, 1, … unless given."""
    dtypes = {"seed": np.uint64, "guidance": np.float32, "schedule": object}
    columns = {"seed": list(range(len(labels)))} | columns
    tensors = {name: np.array(values, dtype=dtypes[name]) for name, values in columns.items()}
    tensors["label"] = np.array(labels, dtype=np.int64)
    return {name: array.reshape(-1, 1) for name, array in tensors.items()}


def test_defaults_are_the_bundles_guidance_and_the_first_schedule(manifest: Manifest) -> None:
    rows = read_rows(given([2, 0], seed=[2**64 - 1, 3]), manifest, SCHEDULES)
    assert rows.request.conditions["label"].tolist() == [2, 0]
    assert rows.request.seeds == (2**64 - 1, 3)
    assert rows.request.guidance.tolist() == [manifest.model.guidance.default] * 2
    assert rows.schedules == ("H1P1R1", "H1P1R1")
    assert rows.variants == ("guided", "guided")


def test_every_row_has_its_own_schedule_and_variant(manifest: Manifest) -> None:
    columns: dict[str, list[Any]] = {"guidance": [1, 1.5, 1], "schedule": [b"H2", "H1P1R1", b"H1P1R1"]}
    rows = read_rows(given([0, 1, 2], **columns), manifest, SCHEDULES)
    assert rows.schedules == ("H2", "H1P1R1", "H1P1R1")
    assert rows.variants == ("unguided", "guided", "unguided")


def test_without_unguided_engines_all_rows_are_guided(manifest: Manifest) -> None:
    rows = read_rows(given([0, 1], guidance=[1, 2]), _only(manifest, "guided"), SCHEDULES)
    assert rows.variants == ("guided", "guided")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (given([5000]), "label 5000 is out of range"),
        (given([0], guidance=[np.inf]), r"guidance is \[inf\], expected a number"),
        (given([0, 1], seed=[3]), "1 seeds for 2 images"),
        (given([0, 1], schedule=[b"H2"]), "1 schedules for 2 images; give one schedule per image"),
    ],
)
def test_mistake_is_refused(manifest: Manifest, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_rows(tensors, manifest, SCHEDULES)


@pytest.mark.parametrize("schedule", [b"H3", b"", b"\xff"])
def test_schedule_that_is_not_served_is_refused(manifest: Manifest, schedule: bytes) -> None:
    with pytest.raises(ScheduleError, match="is not served; use H1P1R1, H2"):
        read_rows(given([0], schedule=[schedule]), manifest, SCHEDULES)


def test_guidance_that_nothing_was_built_for_is_refused(manifest: Manifest) -> None:
    with pytest.raises(RequestError, match="unguided engines only"):
        read_rows(given([0], guidance=[1.5]), _only(manifest, "unguided"), SCHEDULES)


def test_messages_are_one_line_whatever_the_rows(manifest: Manifest) -> None:
    with pytest.raises(RequestError) as told:
        read_rows(given([0] * 40, guidance=[np.nan] * 40), manifest, SCHEDULES)
    assert "\n" not in str(told.value)


def test_rows_of_a_program_are_put_together_and_know_where_they_belong(manifest: Manifest) -> None:
    asked = {
        0: read_rows(given([0, 1, 2], guidance=[1.5, 1, 2]), manifest, SCHEDULES),
        2: read_rows(given([2, 1], seed=[8, 9], guidance=[4, 1]), manifest, SCHEDULES),
        3: read_rows(given([1], schedule=[b"H2"]), manifest, SCHEDULES),
    }
    groups = group_rows(asked)
    assert [(group.schedule, group.variant, group.origins) for group in groups] == [
        ("H1P1R1", "guided", ((0, 0), (0, 2), (2, 0))),
        ("H1P1R1", "unguided", ((0, 1), (2, 1))),
        ("H2", "guided", ((3, 0),)),
    ]
    first = groups[0]
    assert first.askers == (0, 2)
    assert first.request.conditions["label"].tolist() == [0, 2, 2]
    assert first.request.conditions["label"].dtype == np.int64
    assert first.request.guidance.tolist() == [1.5, 2, 4]
    assert first.request.guidance.dtype == np.float32
    assert first.request.seeds == (0, 2, 8)


def test_part_and_filled_keep_rows_and_origins_together(manifest: Manifest) -> None:
    asked = {0: read_rows(given([0, 1, 2], seed=[4, 5, 6]), manifest, SCHEDULES)}
    (group,) = group_rows(asked)
    part = group.part(slice(1, 9))
    assert part.origins == ((0, 1), (0, 2))
    assert part.request.seeds == (5, 6)
    assert part.request.conditions["label"].tolist() == [1, 2]
    filled = part.filled(4)
    assert filled.request.seeds == (5, 6, 6, 6)
    assert filled.origins == ((0, 1), (0, 2), (0, 2), (0, 2))


def _only(manifest: Manifest, variant: str) -> Manifest:
    programs = {schedule: {variant: known[variant]} for schedule, known in manifest.programs.items()}
    return replace(manifest, programs=programs)
