"""Plans: pure functions of an image's number, and one reader."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.generation.plan import (
    PLAN,
    GenerationPlan,
    PlanError,
    difference,
    plan_json,
    read_plan,
    splitmix64,
)
from flowturbo_trt.sampling.errors import FlowTurboError

BALANCED = GenerationPlan(
    bundle="0" * 64,
    num=50_001,
    schedule="H1P5R3",
    guidance=1.5,
    labels="balanced",
    classes=(0, 9),
    seed=3,
    format="npz",
    shard_size=500,
    batch=64,
    image=(28, 28),
    backend="onnxruntime",
    device="cpu",
    provider=None,
    software={"numpy": "2.4.6", "flowturbo_trt": "0.1.0"},
)
RANDOM = replace(BALANCED, labels="random")


def test_generator_is_splitmix64() -> None:
    """The outputs that implementations of it are published with."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [splitmix64(1234567, index) for index in range(5)] == expected


def test_generator_takes_the_largest_seed() -> None:
    assert 0 <= splitmix64(2**64 - 1, 2**40) < 2**64


def test_seeds_differ_within_and_between_runs() -> None:
    plans = [replace(RANDOM, seed=seed) for seed in range(3)]
    assert len({plan.seed_of(i) for plan in plans for i in range(plan.num)}) == 3 * RANDOM.num


def test_seeds_are_the_even_outputs() -> None:
    assert [RANDOM.seed_of(i) for i in (0, 7)] == [splitmix64(3, 0), splitmix64(3, 14)]


def test_balanced_labels() -> None:
    counts = Counter(BALANCED.label_of(i) for i in range(BALANCED.num))
    assert counts == {0: 5001, **dict.fromkeys(range(1, 10), 5000)}
    assert replace(BALANCED, classes=(2, 4)).label_of(4) == 3


def test_random_labels() -> None:
    """All classes and no other, as often as chance has it, and independent of their neighbours."""
    plan = replace(RANDOM, classes=(1, 4), num=20_000)
    labels = np.array([plan.label_of(i) for i in range(plan.num)])
    pairs = np.zeros((4, 4))
    np.add.at(pairs, (labels[:-1] - 1, labels[1:] - 1), 1)
    expected = (plan.num - 1) / 16
    # Of 15 degrees of freedom the statistic exceeds 44 once in 10,000.
    assert ((pairs - expected) ** 2 / expected).sum() < 44
    odd = [splitmix64(3, 2 * i + 1) for i in range(50)]
    assert labels[:50].tolist() == [1 + output * 4 // 2**64 for output in odd]


def test_listed_labels_are_taken_in_turn() -> None:
    plan = replace(BALANCED, labels=(7, 7, 2))
    assert [plan.label_of(i) for i in range(5)] == [7, 7, 2, 7, 7]


def test_shards_and_batches_are_all_images_in_order() -> None:
    indices = [i for shard in range(BALANCED.shards) for batch in BALANCED.batches(shard) for i in batch]
    assert indices == list(range(50_001))
    assert BALANCED.shards == 101
    assert [len(BALANCED.indices(shard)) for shard in (0, 99, 100)] == [500, 500, 1]
    assert [len(batch) for batch in BALANCED.batches(0)] == [64] * 7 + [52]


def test_batches_end_with_their_shard() -> None:
    starts = [batch[0] for shard in range(3) for batch in BALANCED.batches(shard)]
    assert {0, 500, 1000} <= set(starts)
    assert all(a < b for a, b in pairwise(starts))


@pytest.mark.parametrize("plan", [BALANCED, replace(BALANCED, labels=(1, 2), provider="cuda", guidance=0.1)])
def test_reading_what_was_written(tmp_path: Path, plan: GenerationPlan) -> None:
    (tmp_path / PLAN).write_text(plan_json(plan))
    assert read_plan(tmp_path) == plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num": 0}, "num is 0, expected at least 1"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"batch": -1}, "batch is -1"),
        ({"seed": 2**64}, r"seed 18446744073709551616 is not from 0 to 2\^64 - 1"),
        ({"format": "jpg"}, "format 'jpg' is not known; use npz or png"),
        ({"labels": "some"}, "labels are 'some', expected balanced, random, or a list"),
        ({"labels": ()}, "labels are .*, expected balanced, random, or a list"),
        ({"schedule": "R3"}, "starts with R"),
    ],
)
def test_plans_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FlowTurboError, match=message):
        replace(BALANCED, **change)


def edited(**changes: Any) -> str:
    return json.dumps(json.loads(plan_json(BALANCED)) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"holds no generated images \(plan.json not found\); give a folder that `generate` wrote"),
        ("{", "plan.json: cannot be read"),
        ("[]", "is no plan of generated images"),
        ('{"kind": "other"}', "is no plan of generated images"),
        (edited(version=2), "version 2 is not 1, which is known here; install a newer one"),
        (edited(extra=1), "has an unknown 'extra'"),
        (plan_json(BALANCED).replace('"seed"', '"sead"'), "has an unknown 'sead'"),
        (edited(num="many"), "plan.json: "),
        (edited(schedule="R3"), "plan.json: .*starts with R"),
    ],
)
def test_plans_that_cannot_be_read(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / PLAN).write_text(text)
    with pytest.raises(PlanError, match=message):
        read_plan(tmp_path)


def test_difference_names_what_differs() -> None:
    assert difference(BALANCED, BALANCED) == ""
    other = replace(BALANCED, shard_size=100, provider="cuda", software={"numpy": "2.5", "pillow": "13"})
    assert difference(BALANCED, other) == (
        "shard size 500 → 100; provider none → cuda; numpy 2.4.6 → 2.5; flowturbo_trt 0.1.0 → none; "
        "pillow none → 13"
    )


def test_difference_of_long_lists_is_short() -> None:
    assert len(difference(BALANCED, replace(BALANCED, labels=tuple(range(1000))))) < 80
