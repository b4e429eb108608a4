"""The digits model in 8 bits: what `calibrate precision` finds, and what its gate says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.benchmarks.random_batch import FIRST, LAST, compare_calibrations
from flowturbo_trt.benchmarks.tables import RESULTS
from flowturbo_trt.calibration.precision.heat_map import save_heat_map
from flowturbo_trt.calibration.precision.options import GateOptions, PrecisionOptions
from flowturbo_trt.calibration.precision.quantize import Calibrated, calibrate_precision
from flowturbo_trt.evaluation.quality.extractor import open_extractor
from flowturbo_trt.evaluation.report import Check
from flowturbo_trt.examples.digits.bundle import GUIDANCE, build_digits
from flowturbo_trt.examples.digits.extractor import EXTRACTOR_FILE
from flowturbo_trt.export.quantization import KINDS

SCHEDULE = "H1P5R3"
SAMPLES = 1000
# Not the result file's name: the picture's numbers go beside it.
FIGURE = RESULTS / "digits_heat_map.png"
# The random batch is of one time; trajectories see all of them.
RANDOM_TIME = 0.5
RANDOM_ROWS = 40


def measure(folder: Path) -> tuple[dict[str, Any], list[Check]]:
    """Calibrate both kinds, and once on a random batch; about 10 minutes on two cores."""
    bundle = build_digits(folder / "digits")
    extractor = open_extractor(EXTRACTOR_FILE)
    options = PrecisionOptions("int8", (SCHEDULE,), rows=100, trial_rows=20, gate=GateOptions(rows=SAMPLES))
    found = {
        kind: calibrate_precision(bundle, replace(options, kind=kind), folder / "recording", extractor)
        for kind in KINDS
    }
    shown = found["int8"]
    save_heat_map(
        shown.sensitivity,
        [group.name for group in shown.choice.put_back],
        f"digits, int8, {SCHEDULE}: error with one group of layers alone in 8 bits",
        FIGURE,
    )
    errors = compare_calibrations(bundle, folder, RANDOM_ROWS, RANDOM_TIME)
    figures = {
        "precision": " and ".join(found),
        "backend": "onnxruntime",
        "guidance": GUIDANCE,
        "samples": SAMPLES,
        "schedule": SCHEDULE,
        "kinds": [_row(calibrated) for calibrated in found.values()],
        "random_batch": {"t": RANDOM_TIME, "trajectories": list(errors[0]), "random": list(errors[1])},
    }
    checks = [
        replace(check, name=f"{kind}: {check.name}")
        for kind, calibrated in found.items()
        for check in calibrated.gate.checks
    ]
    return figures, checks + _random_checks(errors[1] / errors[0])


def _random_checks(ratios: NDArray[np.float64]) -> list[Check]:
    first, *_, last = map(float, ratios)
    return [
        Check(
            f"velocity error at the {where} call, random batch / trajectories",
            r,
            f"more than {least}",
            r > least,
        )
        for where, r, least in (("first", first, FIRST), ("last", last, LAST))
    ]


def _row(found: Calibrated) -> dict[str, Any]:
    gate = found.gate
    (drift,), (agreement,) = gate.drifts, gate.agreements
    return {
        "kind": found.recipe.kind,
        "arrangement": str(found.arrangement),
        "layers": sum(map(len, found.recipe.layers.values())),
        "trajectory_error": drift.mean,
        "budget": drift.budget,
        "psnr": drift.psnr_mean,
        "recognised": agreement.quantized,
        "recognised_float32": agreement.float32,
        "megabytes": gate.quantized_bytes / 1e6,
        "megabytes_float32": gate.float32_bytes / 1e6,
        "milliseconds": {str(speed.batch): [speed.quantized, speed.float32] for speed in gate.speeds},
    }
