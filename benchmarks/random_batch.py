"""Calibration on one random batch, as exporters do it, against calibration on trajectories."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import make_rows
from flowturbo_trt.calibration.precision.activations import replay
from flowturbo_trt.calibration.precision.groups import find_candidates, make_groups
from flowturbo_trt.calibration.precision.options import PrecisionOptions
from flowturbo_trt.calibration.precision.scales import Arrangement, Scales
from flowturbo_trt.calibration.precision.trials import Trials, find_truth
from flowturbo_trt.calibration.recording import files
from flowturbo_trt.calibration.recording.call_sites import CallSite, program_digests
from flowturbo_trt.calibration.recording.float32 import float32_view
from flowturbo_trt.calibration.recording.trajectories import Call, Recording, record, sources_of
from flowturbo_trt.evaluation.velocity.networks import EngineField
from flowturbo_trt.runtime.backend_onnxruntime import NAME, OnnxRuntimeBackend

SCHEDULE = "H4"
# Seeds that no trajectory starts from: of the random batch, and of the rows both are judged on.
SEED, JUDGED_SEED = 1000, 2000
# How many times as large the errors of the first and of the last call are with a random batch, at least.
FIRST, LAST = 1.3, 1.2


def record_random_batch(bundle: Bundle, folder: Path, rows: int, t: float) -> Recording:
    """Record a single call of the guided predictor: noise in place of a state at time `t`."""
    view = float32_view(bundle)
    manifest = view.manifest
    request = make_rows(manifest, rows, SEED)
    noise = np.empty((rows, *manifest.model.latent), dtype=np.float32)
    request.fill_noise(slice(0, rows), noise)
    site = CallSite("H1", 0, "predictor", "guided", t)
    field = EngineField(OnnxRuntimeBackend(view, 1), manifest, NAME, "guided", request)
    output = replay(field, Call(site, noise, None, noise))
    tensors = {f"{site.key}.state": noise, f"{site.key}.output": output}
    files.begin(folder)
    shard = files.write_shard(
        folder, 0, rows, {**request.conditions, "guidance": request.guidance, **tensors}
    )
    guidance = manifest.model.guidance
    programs = program_digests(manifest, [site.schedule], site.variant)
    return Recording(
        folder,
        sources_of(manifest),
        guidance.channels,
        rows,
        SEED,
        (guidance.default,),
        site.variant,
        dict(programs),
        (shard,),
        (site,),
        {},
    )


def compare_calibrations(bundle: Bundle, folder: Path, rows: int, t: float) -> NDArray[np.float64]:
    """Return velocity errors of the guided predictor, teacher-forced, by call of SCHEDULE: (2,calls).

    All candidates are in INT8, with ranges of the least squared error: first from `rows` trajectories, then
    from as many noises at time `t`. Errors are on half as many trajectories, none of them among those.
    """
    view = float32_view(bundle)
    recording = record(bundle, [SCHEDULE], folder / "trajectories", rows=rows, threads=1)
    random = record_random_batch(bundle, folder / "random", rows, t)
    judged = record(bundle, [SCHEDULE], folder / "judged", rows=rows // 2, seed=JUDGED_SEED, threads=1)
    truth = find_truth(view, judged, rows // 2, None, 1)
    macs = find_candidates(view, recording.sites, ["predictor"], PrecisionOptions.layers)
    groups = make_groups(macs, PrecisionOptions.groups)
    errors = []
    for used in (recording, random):
        scales = Scales(view, used, ("predictor", "guided"), 1, lambda what, done, total: None)
        layers = scales.arrange(macs["predictor guided"], "int8", Arrangement("error", None))
        trials = Trials(truth, {"predictor guided": layers}, "int8")
        errors.append(list(trials.velocity_errors(groups, judged.sites).values()))
    return np.array(errors)
