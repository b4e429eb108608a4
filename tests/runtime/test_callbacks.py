"""Callbacks after every step: what they are told and when, previews, and cancelling."""

from dataclasses import FrozenInstanceError
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.runtime.pipeline import Pipeline, Step
from flowturbo_trt.runtime.request import make_request
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.tests.bundles import latents
from flowturbo_trt.tests.runtime.engine_fields import decode

LABELS = [7, 0, 1, 9, 4]
# The built batch sizes are 1 and 2.
ROWS = [slice(0, 2), slice(2, 4), slice(4, 5)]


def steps_of(pipeline: Pipeline, **arguments: Any) -> list[Step]:
    steps: list[Step] = []
    pipeline(**arguments, on_step=steps.append)
    return steps


@pytest.mark.parametrize("schedule", ["H1P2R1", "AB2x3", "E2H1@0,0.2,0.7,1"])
def test_order_and_times(golden_pipeline: Pipeline, schedule: str) -> None:
    """Batch by batch, and within each the schedule's steps."""
    parsed = Schedule.parse(schedule)
    steps = steps_of(golden_pipeline, labels=LABELS, schedule=schedule)
    count = len(parsed.kinds)
    assert [step.rows for step in steps] == [rows for rows in ROWS for _ in range(count)]
    assert [step.index for step in steps] == list(range(count)) * 3
    assert {step.count for step in steps} == {count}
    assert tuple((step.kind, step.t, step.s) for step in steps) == parsed.steps * 3


def test_shapes(golden_pipeline: Pipeline) -> None:
    for step in steps_of(golden_pipeline, labels=LABELS):
        n = step.rows.stop - step.rows.start
        assert step.state.shape == (n, 4, 8, 8)
        assert step.velocity.shape == (n, 2, 4, 8, 8)
        assert step.state.dtype == step.velocity.dtype == np.float32


def test_unguided_velocities_have_one_half(golden_pipeline: Pipeline) -> None:
    (step,) = steps_of(golden_pipeline, labels=[1], schedule="E1", guidance=1)
    assert step.velocity.shape == (1, 1, 4, 8, 8)


def test_variants_that_alternate(golden_pipeline: Pipeline) -> None:
    """A step passes on what its velocity is: outside the guidance interval one half."""
    steps = steps_of(golden_pipeline, labels=[1], schedule="E4:guided=0.2..0.6")
    assert [step.velocity.shape[1] for step in steps] == [1, 2, 2, 1]


def test_last_state_is_the_result(golden_pipeline: Pipeline) -> None:
    found = np.zeros((5, 4, 8, 8), dtype=np.float32)

    def keep(step: Step) -> None:
        if step.index == step.count - 1:
            found[step.rows] = step.state

    golden_pipeline(LABELS, on_step=keep)
    np.testing.assert_array_equal(found, latents(golden_pipeline, LABELS))


def test_euler_by_hand(golden_pipeline: Pipeline) -> None:
    """Each state is the one before, moved along the velocity that the callback is shown."""
    states, velocities = [], []

    def keep(step: Step) -> None:
        states.append(step.state.copy())
        velocities.append(step.velocity[:, 0].copy())

    noise = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)
    golden_pipeline([3], noise=noise, schedule="E4", on_step=keep)
    for v, (x, moved) in zip(velocities, pairwise([noise, *states]), strict=True):
        np.testing.assert_allclose(moved, x + 0.25 * v, rtol=0, atol=1e-6)


def test_watching_changes_nothing(golden_pipeline: Pipeline) -> None:
    expected = golden_pipeline(LABELS)
    watched = golden_pipeline(LABELS, on_step=lambda step: step.preview())
    np.testing.assert_array_equal(watched, expected)


def test_previews(golden_pipeline: Pipeline, golden_bundle: Path) -> None:
    """The decoder's image of where the trajectory would end if it went on straight."""
    shown: list[Any] = []

    def look(step: Step) -> None:
        ahead = step.state + np.float32(1 - step.s) * step.velocity[:, 0]
        found, expected = step.preview(), decode(golden_bundle, ahead)
        assert found.shape == (step.rows.stop - step.rows.start, 16, 16, 3)
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
        shown.append(found)

    images = golden_pipeline(LABELS, schedule="H1P2R1", on_step=look)
    assert len(shown) == 12
    # After the last step there is nothing left to go, and what was shown stays as it was.
    np.testing.assert_array_equal(np.concatenate([shown[3], shown[7], shown[11]]), images)
    assert not np.array_equal(shown[0], shown[3])


def test_preview_without_decoding(golden_pipeline: Pipeline) -> None:
    shapes: list[tuple[int, ...]] = []
    request = make_request(golden_pipeline.manifest.model, {"label": [1]}, None, None, None)
    made = golden_pipeline.generate(
        request, "E1", decode=False, on_step=lambda step: shapes.append(step.preview().shape)
    )
    assert made.images is None
    assert shapes == [(1, 16, 16, 3)]


def test_step_cannot_be_assigned(golden_pipeline: Pipeline) -> None:
    (step,) = steps_of(golden_pipeline, labels=[1], schedule="E1")
    with pytest.raises(FrozenInstanceError):
        step.index = 3  # type: ignore[misc]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, StopIteration])
@pytest.mark.parametrize("when", [0, 4, 11, 26])
def test_exception_cancels(golden_pipeline: Pipeline, when: int, error: type[BaseException]) -> None:
    """In whatever step of whatever batch: the call ends there, and the next is as if it had not been."""
    expected = latents(golden_pipeline, LABELS, seeds=range(5))
    seen: list[Step] = []

    def cancel(step: Step) -> None:
        seen.append(step)
        if len(seen) == when + 1:
            raise error("enough")

    # A generator turns StopIteration into RuntimeError.
    with pytest.raises((error, RuntimeError), match=r"enough|StopIteration"):
        golden_pipeline([5] * 5, seeds=[9] * 5, on_step=cancel)
    assert len(seen) == when + 1
    np.testing.assert_array_equal(latents(golden_pipeline, LABELS, seeds=range(5)), expected)
