"""Noise: NumPy's values against a port of its definition in plain integers."""

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.noise import MAX_SEED, fill_noise, standard_normal

WORD = 2**64 - 1
SEEDS = [0, 1, 12345, 2**32, 2**63 + 7, MAX_SEED]


def philox_block(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the four words of Philox4x64-10 for a counter (Salmon et al., 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        low, high = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (high >> 64) ^ c1 ^ k0, high & WORD, (low >> 64) ^ c3 ^ k1, low & WORD
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
    return c0, c1, c2, c3


def raw_words(seed: int) -> Iterator[int]:
    """Yield the raw stream of a seed: blocks of the counters 1, 2, 3, …, each word by word.

    NumPy is told counter 0 and increments before it computes, so block 0 never appears.
    """
    counter = 1
    while True:
        yield from philox_block((counter, 0, 0, 0), (seed, 0))
        counter += 1


def box_muller(seed: int) -> Iterator[float]:
    """Yield the normal values of a seed in float64."""
    words = raw_words(seed)
    for first, second in zip(words, words, strict=False):
        radius = math.sqrt(-2 * math.log(((first >> 11) + 1) * 2.0**-53))
        angle = 2 * math.pi * ((second >> 11) * 2.0**-53)
        yield radius * math.cos(angle)
        yield radius * math.sin(angle)


def test_port_gives_the_published_known_answers() -> None:
    """The vectors of Random123's kat_vectors for philox4x64-10."""
    assert philox_block((0, 0, 0, 0), (0, 0)) == (
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    )
    assert philox_block((WORD,) * 4, (WORD, WORD)) == (
        0x87B092C3013FE90B,
        0x438C3C67BE8D0224,
        0x9CC7D7C69CD777B6,
        0xA09CAEBF594F0BA0,
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_raw_stream_starts_at_counter_1(seed: int) -> None:
    raw = np.random.Philox(key=seed).random_raw(4 * 70).tolist()
    assert raw == list(islice(raw_words(seed), len(raw)))


@pytest.mark.parametrize("seed", SEEDS)
def test_values_are_box_muller_of_the_raw_stream(seed: int) -> None:
    values = standard_normal(seed, (4, 8, 8))
    assert values.dtype == np.float32
    expected = np.array(list(islice(box_muller(seed), values.size)))
    # float32 keeps 24 bits: half a unit from the rounding, and as much again where log or cos differ.
    assert (np.abs(values.ravel() - expected) <= np.spacing(np.abs(expected).astype(np.float32))).all()
    assert np.mean(values.ravel() == expected.astype(np.float32)) > 0.99


@pytest.mark.parametrize("count", [1, 3, 7, 255])
def test_an_odd_count_is_the_start_of_a_longer_one(count: int) -> None:
    values = standard_normal(9, (count,))
    assert values.shape == (count,)
    np.testing.assert_array_equal(values, standard_normal(9, (256,))[:count])


def test_shape_only_folds_the_values() -> None:
    flat = standard_normal(3, (24,))
    np.testing.assert_array_equal(standard_normal(3, (2, 3, 4)), flat.reshape(2, 3, 4))


def test_a_seed_gives_its_row_in_any_batch() -> None:
    seeds = [5, 0, MAX_SEED, 5]
    batch = np.full((4, 2, 3, 3), np.nan, dtype=np.float32)
    fill_noise(batch, seeds)
    for row, seed in zip(batch, seeds, strict=True):
        np.testing.assert_array_equal(row, standard_normal(seed, (2, 3, 3)))
    reversed_batch = np.empty_like(batch)
    fill_noise(reversed_batch, seeds[::-1])
    np.testing.assert_array_equal(reversed_batch[::-1], batch)


def test_fill_writes_into_a_view_and_wants_a_seed_per_row() -> None:
    backing = np.zeros((3, 2, 5), dtype=np.float32)
    fill_noise(backing[:, :, 1:4], [1, 2, 3])
    np.testing.assert_array_equal(backing[1, :, 1:4], standard_normal(2, (2, 3)))
    assert not backing[:, :, 0].any()
    with pytest.raises(ValueError, match="shorter"):
        fill_noise(backing, [1, 2])


def test_distribution_is_standard_normal() -> None:
    n = 200_000
    values = standard_normal(42, (n,)).astype(np.float64)
    assert abs(values.mean()) < 4 / math.sqrt(n)
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(np.mean(values**4) - 3) < 4 * math.sqrt(96 / n)
    assert abs(np.mean(np.abs(values) < 1) - math.erf(1 / math.sqrt(2))) < 0.005
    assert np.isfinite(values).all()


def test_seeds_and_neighbours_are_uncorrelated() -> None:
    a, b = standard_normal(1, (50_000,)), standard_normal(2, (50_000,))
    for x, y in ((a, b), (a[:-1], a[1:]), (a[::2], a[1::2])):
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.02


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_rejects_a_seed_outside_64_bits(seed: int) -> None:
    """The format's key has 64 bits; NumPy alone would take 128."""
    with pytest.raises((ValueError, FlowTurboError)):
        standard_normal(seed, (4,))
