"""What a new kind of step takes: a formula and its line in STEPS. All the rest finds it there.

This file is the example CONTRIBUTING.md points to: the midpoint rule, as it would be added.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.commands.group import cli
from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.noise import fill_noise
from flowturbo_trt.sampling.reference import sample
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.steps import STEPS, Field, Passed
from flowturbo_trt.tests.bundles import latents
from flowturbo_trt.tests.sampling.test_steps import convergence_order, error_at_end


# sampling/steps.py: the formula …
def midpoint(field: Field, x: Any, passed: Passed, t: float, s: float) -> tuple[Any, Passed]:
    """Advance by the velocity half-way; 2 evaluations, order 2."""
    h = s - t
    middle = t + h / 2
    d0 = field.predict(x, t)
    d1 = field.predict(x + h / 2 * d0, middle)
    return x + h * d1, ((middle, d1),)


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    # … and its line in STEPS.
    monkeypatch.setitem(STEPS, "M", midpoint)


def test_schedule_knows_it() -> None:
    schedule = Schedule.parse("M2P1R1")
    assert str(schedule) == "M2P1R1"
    # P finds no velocity of its own time, since M passes on the middle's.
    assert schedule.evaluations() == {"predictor": 6, "refiner": 2}


def test_order() -> None:
    """What tests/sampling/test_steps.py would say of it."""
    assert convergence_order(lambda n: error_at_end(f"M{n}")) == pytest.approx(2, abs=0.1)


class Engines:
    """The engines of a fused bundle as the field of the formulas: guided by 1.5, labels 1 and 2."""

    def __init__(self, path: Path) -> None:
        self.backend = OnnxRuntimeBackend(Bundle.open(path), 1)
        self.constant = {"label": np.array([1, 2]), "guidance": np.full(2, 1.5, dtype=np.float32)}

    def predict(self, x: Any, t: float) -> Any:
        # As the reference doubles its batch: a state takes part with both halves of a velocity.
        inputs = {"state": x[:, 0], "time": np.full(2, t, dtype=np.float32), **self.constant}
        return self.backend.evaluate("predictor", "guided", inputs)

    def refine(self, x: Any, v: Any, t: float) -> Any:
        inputs = {"state": x[:, 0], "time": np.full(2, t, dtype=np.float32), "velocity": v, **self.constant}
        return self.backend.evaluate("refiner", "guided", inputs)


def test_engines_run_it_as_they_are(
    golden_fused_bundle: Path, golden_fused_pipeline: Pipeline, golden_pipeline: Pipeline
) -> None:
    """No engine is rebuilt: the runtime's latents are those of the formulas called on the engines."""
    noise = np.zeros((2, *golden_pipeline.manifest.model.latent), dtype=np.float32)
    fill_noise(noise, (7, 8))
    *_, (x, _) = sample(Schedule.parse("M2R1"), Engines(golden_fused_bundle), noise[:, None])
    # With the conditioning hoisted too, whose times are now others than any bundle was built with.
    for pipeline in (golden_fused_pipeline, golden_pipeline):
        found = latents(pipeline, [1, 2], "M2R1", seeds=[7, 8], guidance=1.5)
        assert relative_l2(found, x[:, 0]) < 1e-6


def test_command_line_takes_it(tiny_bundle: Path, tmp_path: Path) -> None:
    words = [
        "sample",
        str(tiny_bundle),
        "--labels",
        "0",
        "--schedule",
        "M2",
        "--out",
        str(tmp_path / "x.png"),
    ]
    cli(words, standalone_mode=False)
    assert (tmp_path / "x.png").is_file()
