"""Requests: what passes, what is refused, and that the refusal says what was expected."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.manifest import Condition, Guidance, Model
from flowturbo_trt.runtime.request import Request, RequestError, make_request
from flowturbo_trt.sampling.noise import standard_normal

MODEL = Model(
    family="sit",
    latent=(2, 3, 5),
    image=None,
    conditions=(Condition("label", "int64", 0, 9),),
    guidance=Guidance(2, 1, 2.5),
    config={},
    refiner_config=None,
)
NOISE = np.random.default_rng(0).standard_normal((3, 2, 3, 5))


def ask(labels: Any = (1, 2, 3), seeds: Any = None, guidance: Any = None, noise: Any = None) -> Request:
    return make_request(MODEL, {"label": labels}, seeds, guidance, noise)


def refused(words: str, **arguments: Any) -> None:
    with pytest.raises(RequestError, match=words):
        ask(**arguments)


def test_defaults() -> None:
    request = ask()
    assert len(request) == 3
    np.testing.assert_array_equal(request.conditions["label"], [1, 2, 3])
    assert request.conditions["label"].dtype == np.int64
    np.testing.assert_array_equal(request.guidance, [2.5, 2.5, 2.5])
    assert request.guidance.dtype == np.float32
    assert request.seeds == (0, 1, 2)
    assert request.noise is None
    assert not request.is_unguided


@pytest.mark.parametrize(
    "labels", [[0, 9], (0, 9), np.array([0, 9], np.uint8), np.array([0, 9], np.int32), range(0, 10, 9)]
)
def test_labels(labels: Any) -> None:
    np.testing.assert_array_equal(ask(labels).conditions["label"], [0, 9])


@pytest.mark.parametrize(
    "labels", [[], 3, [1.0, 2.0], ["1"], [True, False], [[1, 2]], [None], [2**70], np.zeros((2, 2), int)]
)
def test_labels_of_a_wrong_type(labels: Any) -> None:
    refused(r"labels are .* of shape \(.*\), expected one or more integers", labels=labels)


def test_labels_of_unequal_lengths() -> None:
    refused("labels: no array of numbers", labels=[[1], [2, 3]])


@pytest.mark.parametrize("label", [-1, 10, 2**63, -(2**63)])
def test_label_out_of_range(label: int) -> None:
    refused(rf"label {label} is out of range; the model knows 0 to 9", labels=np.array([label]))


@pytest.mark.parametrize("conditions", [{}, {"label": [1], "text": ["a"]}, {"class": [1]}])
def test_other_conditions(conditions: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"conditions are \[.*\], the model takes \['label'\]"):
        make_request(MODEL, conditions, None, None, None)


@pytest.mark.parametrize(
    "seeds", [[5, 0, 2**64 - 1], (5, 0, 2**64 - 1), np.array([5, 0, 2**64 - 1], np.uint64)]
)
def test_seeds(seeds: Any) -> None:
    request = ask(seeds=seeds)
    assert request.seeds == (5, 0, 2**64 - 1)
    assert {type(seed) for seed in request.seeds} == {int}


def test_seeds_give_the_noise_of_the_format() -> None:
    out = np.zeros((2, 2, 3, 5), dtype=np.float32)
    ask(seeds=[7, 8, 9]).fill_noise(slice(1, 3), out)
    np.testing.assert_array_equal(out, [standard_normal(8, (2, 3, 5)), standard_normal(9, (2, 3, 5))])


@pytest.mark.parametrize(
    "seed", [-1, 2**64, 1.0, "1", True, None, np.bool_(True), np.float32(1)], ids=lambda seed: repr(seed)
)
def test_seed_of_a_wrong_type_or_range(seed: Any) -> None:
    refused(r"seed .* is not an integer from 0 to 2\^64 - 1", seeds=[0, seed, 1])


@pytest.mark.parametrize("seeds", ["123", {1, 2, 3}, np.array([1.0, 2.0, 3.0]), [[1], [2, 3]], Path("s.npy")])
def test_seeds_that_are_none(seeds: Any) -> None:
    refused("is not an integer", seeds=seeds)


@pytest.mark.parametrize(("seeds", "count"), [([], 0), ([1], 1), (range(4), 4), (5, 1)])
def test_number_of_seeds(seeds: Any, count: int) -> None:
    refused(f"{count} seeds for 3 images; give one seed per image", seeds=seeds)


@pytest.mark.parametrize(
    "guidance", [4, 4.0, np.float64(4), np.array(4), [4, 4, 4], np.full(3, 4, np.float16)]
)
def test_guidance(guidance: Any) -> None:
    np.testing.assert_array_equal(ask(guidance=guidance).guidance, np.full(3, 4, np.float32))


@pytest.mark.parametrize(
    ("guidance", "expected"), [(1, True), ([1, 1, 1], True), ([1, 1, 2], False), (0, False)]
)
def test_unguided(guidance: Any, expected: bool) -> None:
    assert ask(guidance=guidance).is_unguided is expected


@pytest.mark.parametrize(
    "guidance",
    [
        float("nan"),
        float("inf"),
        "1.5",
        True,
        [1, 2],
        [[1, 2, 3]],
        [1, float("nan"), 2],
        1j,
        [],
        1e39,
        [None],
    ],
)
def test_guidance_that_is_refused(guidance: Any) -> None:
    """1e39 is finite in float64 and infinite in float32, which is what the engines get."""
    refused(r"guidance is .*, expected a number, or one for each of 3 images", guidance=guidance)


def test_guidance_of_unequal_lengths() -> None:
    refused("guidance: no array of numbers", guidance=[[1], [2, 3]])


def test_guidance_is_not_the_callers_array() -> None:
    mine = np.full(3, 4, dtype=np.float32)
    request = ask(guidance=mine)
    mine[:] = 0
    np.testing.assert_array_equal(request.guidance, [4, 4, 4])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_noise(dtype: Any) -> None:
    request = ask(noise=NOISE.astype(dtype))
    out = np.zeros((2, 2, 3, 5), dtype=np.float32)
    request.fill_noise(slice(1, 3), out)
    np.testing.assert_array_equal(out, NOISE[1:].astype(dtype).astype(np.float32))


@pytest.mark.parametrize(
    "noise",
    [
        NOISE[:2],
        NOISE[:, :1],
        NOISE[0],
        NOISE.astype(int),
        NOISE.astype(complex),
        NOISE * np.nan,
        NOISE * 1e39,
    ],
    ids=["rows", "channels", "one image", "integers", "complex", "NaN", "too large"],
)
def test_noise_that_is_refused(noise: Any) -> None:
    refused(r"noise is .* of shape .*, expected finite floats of shape \(3, 2, 3, 5\)", noise=noise)


def test_noise_and_seeds() -> None:
    refused("both seeds and noise are given; .*give one of them", noise=NOISE, seeds=[1, 2, 3])
