"""Verdicts: the words follow the figures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.velocity.endpoints import PerfectRefiner
from flowturbo_trt.evaluation.velocity.verdict import ranges, verdict
from flowturbo_trt.tests.evaluation.velocity.fields import KnownField
from flowturbo_trt.tests.evaluation.velocity.made_up import bending, diagnosis_of, helpful


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


@pytest.mark.parametrize(
    ("holds", "expected"),
    [
        ([False] * 5, "never"),
        ([True] * 5, "0–1"),
        ([True, True, False, True, False], "0–0.25, 0.75"),
        ([False, False, False, False, True], "1"),
    ],
)
def test_ranges(holds: list[bool], expected: str) -> None:
    assert ranges([0, 0.25, 0.5, 0.75, 1], holds) == expected


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (1.0, "The refiner helps H1P2R2:consistent: it ends"),
        # As far off as reuse, to the other side, and further.
        (2.5, "The refiner harms H1P2R2:consistent"),
        (0.1, "The refiner beats reuse, but its steps harm H1P2R2:consistent"),
    ],
)
def test_of_endpoints(manifest: Manifest, share: float, words: str) -> None:
    assert verdict(diagnosis_of(manifest, helpful(bending, share)))[0].startswith(words)


def test_what_cannot_be_told_is_not_decided(manifest: Manifest) -> None:
    """Trajectories at rest end alike whatever the steps; of few images hardly anything can be said."""
    rest = PerfectRefiner(KnownField(lambda x, t: np.zeros_like(x)))
    first = verdict(diagnosis_of(manifest, rest))[0]
    assert first.startswith("12 images do not decide whether the refiner helps")
    scattered = diagnosis_of(manifest, helpful(bending, 1))
    refined, perfect, reused, _ = scattered.endpoints
    left_out = refined * np.where(np.arange(12) < 7, 1.2, 9)
    scattered = replace(scattered, endpoints=np.stack([refined, perfect, reused, left_out]))
    first = verdict(scattered)[0]
    assert first.startswith("12 images do not decide whether the refiner helps")
    first = verdict(diagnosis_of(manifest, helpful(bending, 1), images=7))[0]
    assert first.startswith("7 images are too few to say whether the refiner helps")
    first = verdict(diagnosis_of(manifest, helpful(bending, 1), images=8))[0]
    assert first.startswith("The refiner helps")


def test_of_ages(manifest: Manifest) -> None:
    helps = verdict(diagnosis_of(manifest, helpful(bending, 0.5)))
    assert helps[1].startswith("The refiner corrects velocities of age Δ = 0.0833333, 0.166667")
    assert not any("spoils" in sentence for sentence in helps)
    harms = verdict(diagnosis_of(manifest, helpful(bending, -0.5)))
    assert harms[1].startswith("The refiner spoils velocities of age Δ = 0.0833333, 0.166667")
    assert "worth 0.67" in harms[1]
    assert not any("corrects" in sentence for sentence in harms)


def test_of_extrapolation(manifest: Manifest) -> None:
    """Where velocities grow evenly, a line is exact and no refiner beats it; but where there is none."""
    even = diagnosis_of(manifest, helpful(lambda x, t: np.full_like(x, 1 + t), 0.5))
    assert "At Δ = 0.0833333, 0.166667, 0.333333, 0.416667 a line" in " ".join(verdict(even))
    perfect = diagnosis_of(manifest, PerfectRefiner(KnownField(bending)))
    assert not any("a line" in sentence for sentence in verdict(perfect))


def test_of_guidance(manifest: Manifest) -> None:
    both = diagnosis_of(manifest, helpful(bending, -1), without_guidance=helpful(bending, 0.5))
    last = verdict(both)[-1]
    assert "velocities guided by 2 at no time" in last
    assert "unguided ones, which the reference trains on, at t = 0.17–1" in last
    assert "guided by" not in " ".join(verdict(diagnosis_of(manifest, helpful(bending, 0.5))))


def test_before_training(manifest: Manifest) -> None:
    first, second = verdict(diagnosis_of(manifest, KnownField(bending), refines=False))
    assert first.startswith("A refiner can help H1P2R2:consistent: with a perfect one it would end")
    harmless = diagnosis_of(manifest, KnownField(lambda x, t: np.zeros_like(x)), refines=False)
    assert verdict(harmless)[0].startswith("A refiner cannot be seen to help H1P2R2:consistent")
    few = verdict(diagnosis_of(manifest, KnownField(bending), refines=False, images=7))[0]
    assert few.startswith("7 images are too few to say whether a refiner can help")
    assert second.startswith("At the schedule's step (Δ = 0.166667) a reused velocity is off by")


def test_without_r_steps_there_is_no_word_on_them(manifest: Manifest) -> None:
    assert verdict(diagnosis_of(manifest, helpful(bending, 0.5), schedule="H3"))[0].startswith(
        "The refiner corrects"
    )
