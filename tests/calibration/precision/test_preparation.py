"""What is refused before anything is recorded, and what is settled by then."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.precision.options import (
    RECOGNISED_ROWS,
    ROWS,
    GateOptions,
    PrecisionOptions,
)
from flowturbo_trt.calibration.precision.preparation import class_notes, prepare
from flowturbo_trt.calibration.recording.float32 import float32_view
from flowturbo_trt.evaluation.quality.extractor import Extractor, ExtractorError, open_extractor
from flowturbo_trt.sampling.noise import MAX_SEED
from flowturbo_trt.tests.evaluation.quality.extractors import write_extractor

OPTIONS = PrecisionOptions("int8", schedules=("H1P1R1", "H2", "H2"), rows=4, trial_rows=4)


@pytest.fixture
def view(tiny_bundle: Path) -> Bundle:
    return float32_view(Bundle.open(tiny_bundle))


def open_tiny(folder: Path, **given: Any) -> Extractor:
    return open_extractor(write_extractor(folder / "e.onnx", **given), threads=1)


def test_what_is_settled(view: Bundle, tmp_path: Path) -> None:
    """Judged rows are of noise after the recorded rows', and more where an extractor is to recognise them."""
    found = prepare(view, OPTIONS, None)
    assert found.schedules == ("H1P1R1", "H2")
    assert set(found.candidates) == {"predictor guided"}
    assert found.judged.seeds == tuple(range(4, 4 + ROWS))
    assert len(prepare(view, OPTIONS, open_tiny(tmp_path)).judged) == RECOGNISED_ROWS
    few = replace(OPTIONS, gate=GateOptions(2))
    assert len(prepare(view, few, open_tiny(tmp_path)).judged) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ("mlp.fc9",)}, "layers 'mlp.fc9': the networks have none"),
        ({"networks": ("refiner",), "schedules": ("H2",)}, "network 'refiner': the schedules never call it"),
        ({"reference": "H2"}, "H1P1R1: H2 is not twice as fine"),
        (
            {"seed": MAX_SEED},
            f"seed {MAX_SEED}: 4 recorded and 64 judged rows count up .* 0 to {MAX_SEED - 67}$",
        ),
        ({"guidance": (1.0, 2.0), "rows": 1}, "guidance 2: too few rows to have it .*; raise --rows"),
        ({"guidance": (1.0, 2.0), "trial_rows": 1}, "guidance 2: .* among 2 scales; raise --trial-rows"),
        ({"guidance": (1.0, 4.0), "gate": GateOptions(1)}, "guidance 4: .*; raise --judged-rows"),
    ],
)
def test_mistakes(view: Bundle, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        prepare(view, replace(OPTIONS, **changes), None)


def test_reference_is_not_needed_with_a_budget(view: Bundle) -> None:
    assert prepare(view, replace(OPTIONS, reference="H2", budget_error=0.1), None).schedules


def test_highest_seed(view: Bundle) -> None:
    found = prepare(view, replace(OPTIONS, seed=MAX_SEED - 4 - ROWS + 1), None)
    assert found.judged.seeds[-1] == MAX_SEED


def test_extractor_without_images(view: Bundle, tmp_path: Path) -> None:
    manifest = replace(view.manifest, model=replace(view.manifest.model, image=None))
    with pytest.raises(CalibrationError, match=r"e.onnx: there are no images to look at, .*--decoder, or"):
        prepare(Bundle(view.path, manifest), OPTIONS, open_tiny(tmp_path))


def test_extractor_of_another_size(view: Bundle, tmp_path: Path) -> None:
    extractor = open_tiny(tmp_path, shape=("batch", 16, 16, 3))
    with pytest.raises(ExtractorError, match="takes images of 16×16 only, these are 8×8"):
        prepare(view, OPTIONS, extractor)


def test_one_image_has_no_distance(view: Bundle, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="1 judged rows: a Fréchet distance needs 2; raise --judged-"):
        prepare(view, replace(OPTIONS, gate=GateOptions(1)), open_tiny(tmp_path))


def test_classes_that_are_not_recorded(view: Bundle) -> None:
    (note,) = class_notes(view.manifest, 2)
    assert note == "2 of 3 values of label were recorded, spread over all; --rows 3 records each"
    assert class_notes(view.manifest, 3) == ()
    assert np.array_equal(prepare(view, OPTIONS, None).judged.conditions["label"][:4], [0, 1, 2, 0])
