"""Calls made again and trajectories followed again, by engines whose errors are known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.recording.float32 import float32_view
from flowturbo_trt.calibration.recording.replaying import follow, velocity_errors
from flowturbo_trt.calibration.recording.trajectories import Recording
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend
from flowturbo_trt.runtime.pipeline import Pipeline

EXCESS = 0.1


class Louder(OnnxRuntimeBackend):
    """Networks that give a tenth more than they should."""

    def evaluate(self, network: str, variant: str | None, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        output = super().evaluate(network, variant, inputs)
        return output if variant is None else output * np.float32(1 + EXCESS)


@pytest.fixture(scope="module")
def view(golden_bundle: Path) -> Bundle:
    return float32_view(Bundle.open(golden_bundle))


def test_no_error(view: Bundle, golden_recording: Recording) -> None:
    parts = list(golden_recording.read(view.manifest))
    errors = velocity_errors(OnnxRuntimeBackend(view, 1), view.manifest, parts, golden_recording.sites)
    assert list(errors) == list(golden_recording.sites)
    for of_rows in errors.values():
        assert of_rows.shape == (golden_recording.rows,)
        assert of_rows.max() < 1e-6


def test_known_errors(view: Bundle, golden_recording: Recording) -> None:
    """A predictor's is that of its velocity; a refiner's offset is a part of the velocity only."""
    parts = list(golden_recording.read(view.manifest))
    done: list[int] = []
    errors = velocity_errors(
        Louder(view, 1), view.manifest, parts, golden_recording.sites, lambda: done.append(1)
    )
    assert len(done) == len(parts) * len(golden_recording.sites)
    for index, site in enumerate(golden_recording.sites):
        for row, (part, of_part) in enumerate((p, i) for p in parts for i in range(len(p.request))):
            call = part.calls[index]
            if call.velocity is None:
                assert errors[site][row] == pytest.approx(EXCESS, rel=1e-4)
            else:
                offset, velocity = call.output[of_part], call.velocity[of_part]
                expected = EXCESS * np.linalg.norm(offset) / np.linalg.norm(velocity + offset)
                assert errors[site][row] == pytest.approx(expected, rel=1e-4)


def test_some_sites(view: Bundle, golden_recording: Recording) -> None:
    """Others are not evaluated."""
    parts = list(golden_recording.read(view.manifest))
    chosen = golden_recording.sites[1:2]
    errors = velocity_errors(Louder(view, 1), view.manifest, parts, chosen)
    assert list(errors) == list(chosen)


def test_follow(view: Bundle, golden_recording: Recording) -> None:
    """As a pipeline generates, also where a schedule is guided for some of the time."""
    backend = OnnxRuntimeBackend(view, 1)
    pipeline = Pipeline(view, OnnxRuntimeBackend(view, 1))
    for rows in golden_recording.read(view.manifest):
        for schedule in golden_recording.schedules:
            found = follow(backend, view.manifest, schedule, "guided", rows.request)
            expected = pipeline.generate(rows.request, schedule, decode=False).latents
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
            unguided = follow(backend, view.manifest, schedule, "unguided", rows.request)
            assert np.abs(unguided - expected).max() > 1e-2
