"""The noise of the C++ library against NumPy's: the same raw values, and normals of the same last place."""

import ctypes

import numpy as np
import pytest

from flowturbo_trt.sampling.noise import MAX_SEED, standard_normal
from flowturbo_trt.tests.serving.cpp.library import Library

SEEDS = (0, 1, 2, 42, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63, MAX_SEED - 1, MAX_SEED)


@pytest.mark.parametrize("seed", SEEDS)
def test_raw_values_are_numpys(cpp_library: Library, seed: int) -> None:
    assert np.array_equal(cpp_library.raw(seed, 1003), np.random.Philox(key=seed).random_raw(1003))


def test_normals_are_within_one_unit_in_the_last_place(cpp_library: Library) -> None:
    random = np.random.default_rng(7)
    seeds = (*SEEDS, *map(int, random.integers(0, MAX_SEED, 200, dtype=np.uint64, endpoint=True)))
    for seed in seeds:
        expected, found = standard_normal(seed, (4, 8, 8)), cpp_library.noise(seed, 256)
        assert np.max(np.abs(found - expected.ravel()) / np.spacing(np.abs(expected.ravel()))) <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 5, 255])
def test_any_number_of_values(cpp_library: Library, count: int) -> None:
    assert np.array_equal(cpp_library.noise(9, count), cpp_library.noise(9, 256)[:count])


def test_no_more_than_asked_for_is_written(cpp_library: Library) -> None:
    out = np.full(6, 5, dtype=np.float32)
    cpp_library.functions.flowturbo_noise(3, out.ctypes.data_as(ctypes.c_void_p), 3)
    assert np.array_equal(out[3:], [5, 5, 5])
    assert not np.any(out[:3] == 5)
