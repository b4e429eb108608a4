"""One pipeline called from several threads, two pipelines at once, and a call within a call."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import RequestError, make_request
from flowturbo_trt.tests.bundles import latents

LABELS = [7, 0, 1, 9, 7, 3, 3]
SEEDS = [5, 2**64 - 1, 0, 5, 6, 77, 1000]


def test_calls_from_several_threads(golden_bundle: Path) -> None:
    """Calls of different shapes in one pipeline give what they give alone."""
    pipeline = Pipeline.load(golden_bundle, threads=1)
    calls: list[dict[str, Any]] = [
        {"labels": LABELS[:n], "seeds": SEEDS[:n], "guidance": scale, "schedule": schedule}
        for n in (1, 2, 3)
        for scale in (1, 1.5)
        for schedule in ("H1P1R1", "H2", "E3")
    ]
    expected = [pipeline(**call) for call in calls]
    barrier = threading.Barrier(6)

    def work(offset: int) -> bool:
        barrier.wait()
        order = [*range(offset, len(calls)), *range(offset)]
        return all(np.array_equal(pipeline(**calls[i]), expected[i]) for i in order)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(0, 18, 3))) == [True] * 6


def test_pipelines_are_independent(golden_bundle: Path, golden_pipeline: Pipeline) -> None:
    """A call in the middle of another pipeline's trajectory does not disturb it."""
    other = Pipeline.load(golden_bundle, threads=1)
    expected = latents(golden_pipeline, LABELS, seeds=SEEDS)
    request = make_request(other.manifest.model, {"label": LABELS}, SEEDS, None, None)
    found = other.generate(request, on_step=lambda step: golden_pipeline([step.index], seeds=[step.index]))
    np.testing.assert_array_equal(found.latents, expected)


def test_call_within_a_call(tiny_bundle: Path) -> None:
    """It can only wait for itself: that is said, not done. The outer call ends with the error."""
    pipeline = Pipeline.load(tiny_bundle, threads=1)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            pipeline([1], on_step=lambda step: pipeline([2]))
        except RequestError as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout=5)
    assert not thread.is_alive()
    assert "on_step" in str(errors[0])
    assert pipeline([1]).shape == (1, 8, 8, 3)
