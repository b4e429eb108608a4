"""Recorded trajectories: what networks see when the schedule runs, all of it, and nothing else."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError, make_rows
from flowturbo_trt.calibration.recording.files import DESCRIPTION
from flowturbo_trt.calibration.recording.trajectories import Call, Recording, open_recording, record
from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.evaluation.torch_reference import TorchNetworks, TorchOptions
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling import reference
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.tests.calibration.conftest import GOLDEN_ROWS, GOLDEN_SCHEDULES

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def golden(golden_bundle: Path) -> Bundle:
    return Bundle.open(golden_bundle)


@pytest.fixture
def tiny(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


class Playback:
    """Gives the recorded outputs in order, where the sampler asks for what was recorded."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._left = list(calls)

    def predict(self, x: Any, t: float) -> Any:
        return self._next("predictor", x, None, t)

    def refine(self, x: Any, v: Any, t: float) -> Any:
        return self._next("refiner", x, v, t)

    def _next(self, network: str, x: Any, v: Any, t: float) -> Any:
        call = self._left.pop(0)
        assert (call.site.network, call.site.t) == (network, t)
        np.testing.assert_array_equal(call.state, x[:, 0])
        assert (call.velocity is None) == (v is None)
        if v is not None:
            np.testing.assert_array_equal(call.velocity, v)
        return call.output

    def check_over(self) -> None:
        assert not self._left


def check_trajectories(recording: Recording, pipeline: Pipeline) -> None:
    """Every schedule's calls are its trajectory, which ends where the pipeline's does."""
    for rows in recording.read(pipeline.manifest):
        assert rows.request.noise is not None
        for text in recording.schedules:
            playback = Playback([call for call in rows.calls if call.site.schedule == text])
            steps = reference.sample(Schedule.parse(text), playback, rows.request.noise[:, None])
            found = [x for x, _ in steps][-1]
            playback.check_over()
            ends = pipeline.generate(rows.request, text, decode=False).latents
            assert relative_l2(found[:, 0], ends) < 1e-5


def test_recorded_is_what_the_schedules_do(golden_recording: Recording, golden_pipeline: Pipeline) -> None:
    check_trajectories(golden_recording, golden_pipeline)


def test_recorded_with_all_channels_guided(tiny_recording: Recording, tiny_pipeline: Pipeline) -> None:
    check_trajectories(tiny_recording, tiny_pipeline)


def test_recorded_with_conditioning_in_the_networks(
    golden_fused_bundle: Path, golden_fused_pipeline: Pipeline, golden_recording: Recording, tmp_path: Path
) -> None:
    found = record(
        Bundle.open(golden_fused_bundle), ["H1P1R1"], tmp_path, rows=3, seed=3, guidance=(1.5, 3.0)
    )
    check_trajectories(found, golden_fused_pipeline)
    assert found.sources == golden_recording.sources


def test_outputs_are_the_networks(golden: Bundle, golden_recording: Recording) -> None:
    """Those of torch on the recorded inputs, with both halves where guided."""
    networks = TorchNetworks(golden, TorchOptions())
    for rows in golden_recording.read(golden.manifest):
        request = rows.request
        for call in rows.calls:
            field = networks.field(call.site.variant, request.conditions, request.guidance)
            x = torch.tensor(call.state)
            v = call.velocity
            with torch.inference_mode():
                found = (
                    field.predict(x, call.site.t)
                    if v is None
                    else field.refine(x, torch.tensor(v), call.site.t)
                )
            assert call.output.shape[1] == (2 if call.site.variant == "guided" else 1)
            assert relative_l2(call.output, found.numpy()) < 1e-5


def test_call_sites(golden_recording: Recording) -> None:
    """By schedule, in the order of evaluation; guided only where the schedule says so."""
    sites = [(s.schedule, s.index, s.network, s.variant, round(s.t, 6)) for s in golden_recording.sites]
    refined, partly = GOLDEN_SCHEDULES
    assert sites == [
        (refined, 0, "predictor", "guided", 0),
        (refined, 1, "predictor", "guided", 0.333333),
        (refined, 2, "predictor", "guided", 0.666667),
        (refined, 3, "refiner", "guided", 0.666667),
        (refined, 4, "refiner", "guided", 1),
        (partly, 0, "predictor", "unguided", 0),
        (partly, 1, "predictor", "guided", 0.5),
        (partly, 2, "predictor", "guided", 0.5),
        (partly, 3, "predictor", "unguided", 1),
    ]


def test_all_rows_are_recorded(golden: Bundle, golden_recording: Recording) -> None:
    """In batches of two and a rest: every class, noise and scale of what was asked for."""
    expected = make_rows(golden.manifest, GOLDEN_ROWS, 3, (1.5, 3.0))
    noise = np.empty((GOLDEN_ROWS, *golden.manifest.model.latent), dtype=np.float32)
    expected.fill_noise(slice(0, GOLDEN_ROWS), noise)
    requests = [rows.request for rows in golden_recording.read(golden.manifest)]
    assert [len(request) for request in requests] == [2, 2, 1]
    for name, values in expected.conditions.items():
        np.testing.assert_array_equal(np.concatenate([r.conditions[name] for r in requests]), values)
    np.testing.assert_array_equal(np.concatenate([r.guidance for r in requests]), expected.guidance)
    np.testing.assert_array_equal(np.concatenate([r.noise for r in requests if r.noise is not None]), noise)


def test_parts_of_rows(golden: Bundle, golden_recording: Recording) -> None:
    rows = next(golden_recording.read(golden.manifest))
    parts = [rows.part(slice(0, 1)), rows.part(slice(1, 2))]
    assert [len(part.request) for part in parts] == [1, 1]
    for index, call in enumerate(rows.calls):
        for name in ("state", "velocity", "output"):
            found = [getattr(part.calls[index], name) for part in parts]
            whole = getattr(call, name)
            assert found == [None, None] if whole is None else np.array_equal(np.concatenate(found), whole)
    np.testing.assert_array_equal(
        np.concatenate([part.request.guidance for part in parts]), rows.request.guidance
    )


def test_provenance(golden: Bundle, golden_recording: Recording) -> None:
    """Survives the disk, and names no checkpoint that was not used."""
    assert open_recording(golden_recording.folder) == golden_recording
    sources = golden.manifest.sources
    assert golden_recording.sources == {n: sources[n]["sha256"] for n in ("predictor", "refiner")}
    assert golden_recording.schedules == GOLDEN_SCHEDULES
    assert (golden_recording.rows, golden_recording.seed, golden_recording.guidance) == (5, 3, (1.5, 3.0))
    assert golden_recording.environment["flowturbo_trt"]
    assert golden_recording.of(golden.manifest) is golden_recording


def test_same_arguments_same_shards(tiny: Bundle, tiny_recording: Recording, tmp_path: Path) -> None:
    again = record(tiny, ("H1P1R1", "H1P1R1"), tmp_path / "again", rows=4, threads=1)
    assert again == replace(tiny_recording, folder=again.folder)
    other = record(tiny, ("H1P1R1",), tmp_path / "other", rows=4, seed=1, threads=1)
    assert not {s.sha256 for s in other.shards} & {s.sha256 for s in again.shards}


def test_rows_without_guidance_among_others(
    golden: Bundle, golden_pipeline: Pipeline, tmp_path: Path
) -> None:
    """A batch of such rows alone is run as all others are."""
    found = record(golden, ("H1",), tmp_path, rows=6, guidance=(1.0, 1.0, 2.0), threads=1)
    of_batches = [rows.request.guidance.tolist() for rows in found.read(golden.manifest)]
    assert [1.0, 1.0] in of_batches
    assert {site.variant for site in found.sites} == {"guided"}
    check_trajectories(found, golden_pipeline)


def test_no_guidance_at_all(golden: Bundle, golden_pipeline: Pipeline, tmp_path: Path) -> None:
    """Takes half the work."""
    found = record(golden, ("H1R1",), tmp_path, rows=2, guidance=(1.0,), threads=1)
    assert Counter((site.network, site.variant) for site in found.sites) == {
        ("predictor", "unguided"): 2,
        ("refiner", "unguided"): 2,
    }
    check_trajectories(found, golden_pipeline)


def test_recording_without_the_refiner(tiny: Bundle, tmp_path: Path) -> None:
    """Is of any bundle with the same predictor."""
    found = record(tiny, ("H1",), tmp_path, rows=1, threads=1)
    assert set(found.sources) == {"predictor"}
    others = tiny.manifest.sources | {"refiner": {"sha256": "another"}}
    assert found.of(replace(tiny.manifest, sources=others)) is found


def test_memory_is_that_of_one_batch(tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No call of an earlier batch is alive when the next one runs."""
    alive: set[int] = set()
    most: list[int] = []

    class Counted(Call):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            alive.add(id(self))
            most.append(len(alive))

        def __del__(self) -> None:
            alive.discard(id(self))

    monkeypatch.setattr("flowturbo_trt.calibration.recording.trajectories.Call", Counted)
    record(tiny, ("H1", "H2"), tmp_path, rows=9, threads=1)
    assert len(most) == 3 * 6
    assert max(most) == 6


def test_interrupted_recording_is_none(tiny: Bundle, tmp_path: Path) -> None:
    """Nor is the earlier one that it was to replace; the next one replaces both."""
    record(tiny, ("H1",), tmp_path, rows=7, threads=1)

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(tiny, ("H1",), tmp_path, rows=4, threads=1, progress=interrupt)
    with pytest.raises(CalibrationError, match="holds no finished recording"):
        open_recording(tmp_path)
    found = record(tiny, ("H1",), tmp_path, rows=1, threads=1)
    assert open_recording(tmp_path) == found
    assert sorted(path.name for path in tmp_path.iterdir()) == [DESCRIPTION, "rows-00000.safetensors"]


def test_progress(tiny: Bundle, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    record(tiny, ("H1",), tmp_path, rows=7, threads=1, progress=lambda *given: told.append(given))
    assert told == [("recording trajectories", done, 7) for done in (3, 6, 7)]


def test_description_is_plain(tiny_recording: Recording) -> None:
    """No path of this machine is in it: a recording can be moved."""
    text = (tiny_recording.folder / DESCRIPTION).read_text()
    assert str(tiny_recording.folder.parent) not in text
    assert json.loads(text)["shards"] == [asdict(shard) for shard in tiny_recording.shards]
