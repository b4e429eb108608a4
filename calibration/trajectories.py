"""Recordings: what each network really sees along the trajectories that will be deployed.

A folder with calibration.json (what was recorded, of what) and shards of some rows each:

    rows-00000.safetensors    condition and guidance (n); for every call CALL.state (n,C,H,W), for
                              refiners CALL.velocity (n,G,C,H,W), and CALL.output (n,G,C,H,W)

A call is an evaluation of a network in a schedule, in the program's order. They come of the float32
graphs; all classes take turns, and so do guidance scales.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.bundle.writing import sync
from flowturbo_trt.calibration.endpoints import CalibrationError, Progress, make_rows
from flowturbo_trt.evaluation.velocity.networks import EngineField
from flowturbo_trt.runtime.backend import Backend
from flowturbo_trt.runtime.programs import choose_variant
from flowturbo_trt.runtime.request import Request, make_request
from flowturbo_trt.sampling import reference
from flowturbo_trt.sampling.reference import ScheduledField

FORMAT = "flowturbo_trt calibration recording"
VERSION = 1
DESCRIPTION = "calibration.json"
Array = NDArray[np.float32]


@dataclass(frozen=True)
class CallSite:
    """An evaluation in a schedule: the index of its program's evaluations, which network, and when."""

    schedule: str
    index: int
    network: str
    variant: str
    t: float

    @property
    def key(self) -> str:
        return f"{self.schedule}/{self.index}"


@dataclass(frozen=True)
class Call:
    """What a network saw at a call site, and what it gave: n rows."""

    site: CallSite
    state: Array
    velocity: Array | None
    output: Array


@dataclass(frozen=True)
class Rows:
    """Some rows of a recording: their conditions and guidance, and all calls."""

    request: Request
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class Recording:
    """A folder of shards; `sources` are the sha256 of the checkpoints it was recorded of, by network."""

    folder: Path
    sources: dict[str, str]
    backend: str
    rows: int
    seed: int
    guidance: tuple[float, ...]
    shards: tuple[str, ...]
    sites: tuple[CallSite, ...]

    def of(self, manifest: Manifest) -> "Recording":
        """Return this after making sure that it was recorded of a bundle's model; raises CalibrationError."""
        expected = sources_of(manifest)
        for network, sha256 in self.sources.items():
            if expected.get(network) != sha256:
                raise CalibrationError(
                    f"{self.folder}: was recorded of another {network} than the bundle's; record this one"
                )
        return self

    def read(self, manifest: Manifest) -> Iterator[Rows]:
        """Read the shards one by one; raises CalibrationError."""
        names = [condition.name for condition in manifest.model.conditions]
        for shard in self.shards:
            try:
                tensors = load_file(self.folder / shard)
                conditions = {name: tensors[name] for name in names}
                noise = tensors[f"{self.sites[0].key}.state"]
                request = make_request(manifest.model, conditions, None, tensors["guidance"], noise)
                calls = tuple(
                    Call(
                        site,
                        tensors[f"{site.key}.state"],
                        tensors.get(f"{site.key}.velocity"),
                        tensors[f"{site.key}.output"],
                    )
                    for site in self.sites
                )
            except Exception as error:  # safetensors and its readers raise errors of no common class
                raise CalibrationError(
                    f"{self.folder / shard}: cannot be read ({error}); record again"
                ) from error
            yield Rows(request, calls)


def sources_of(manifest: Manifest) -> dict[str, str]:
    """Return what tells a bundle's networks from others': the sha256 of their checkpoints."""
    return {name: about["sha256"] for name, about in manifest.sources.items() if name != "decoder"}


def record(
    bundle: Bundle,
    backend: Backend,
    name: str,
    schedules: Sequence[str],
    folder: Path,
    *,
    rows: int,
    seed: int = 0,
    guidance: Sequence[float] = (),
    progress: Progress = lambda what, done, total: None,
) -> Recording:
    """Run schedules over `rows` rows and write down every evaluation; raises CalibrationError.

    In batches of the largest size that engines were built for, one shard each: never more than one in
    memory. `name` is the backend's, whose engines run.
    """
    manifest = bundle.manifest
    if rows < 1:
        raise CalibrationError(f"{rows} rows: expected at least 1")
    request = make_rows(manifest, rows, seed, guidance)
    batch = max(manifest.batches)
    starts = range(0, rows, batch)
    sites: tuple[CallSite, ...] = ()
    shards = []
    _begin(folder)
    for number, start in enumerate(starts):
        part = _rows_of(manifest, request, start, batch)
        calls = [call for text in schedules for call in _run(manifest, backend, name, text, part)]
        sites = tuple(call.site for call in calls)
        shards.append(f"rows-{number:05}.safetensors")
        _write(folder / shards[-1], part, calls, min(batch, rows - start))
        progress("recording trajectories", min(start + batch, rows), rows)
    recording = Recording(
        folder, sources_of(manifest), name, rows, seed, tuple(guidance), tuple(shards), sites
    )
    document = {"format": FORMAT, "version": VERSION, **asdict(recording)}
    del document["folder"]
    (folder / DESCRIPTION).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sync([folder / DESCRIPTION])
    return recording


def open_recording(folder: Path) -> Recording:
    """Open a finished recording; raises CalibrationError."""
    try:
        data: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if (data.pop("format"), data.pop("version")) != (FORMAT, VERSION):
            raise ValueError("of another format")
        data["sites"] = tuple(CallSite(**site) for site in data["sites"])
        data["shards"], data["guidance"] = tuple(data["shards"]), tuple(data["guidance"])
        return Recording(folder, **data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(f"{folder}: no recording of trajectories ({error}); record them") from error


def _begin(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = [p.name for p in folder.iterdir() if p.name != DESCRIPTION and p.suffix != ".safetensors"]
        if others:
            raise CalibrationError(f"{folder}: holds {others[0]}, which no recording made; give a new folder")
        for old in folder.iterdir():
            old.unlink()
    except OSError as error:
        raise CalibrationError(f"{folder}: cannot be written ({error}); give another folder") from error


def _rows_of(manifest: Manifest, request: Request, start: int, batch: int) -> Request:
    """Return a batch of a request's rows; the last one is filled up with its first row."""
    rows = [start + i if start + i < len(request) else start for i in range(batch)]
    conditions = {name: values[rows] for name, values in request.conditions.items()}
    seeds = [request.seeds[row] for row in rows]
    return make_request(manifest.model, conditions, seeds, request.guidance[rows], None)


def _run(manifest: Manifest, backend: Backend, name: str, text: str, request: Request) -> list[Call]:
    schedule = manifest.schedule(text)
    noise = np.empty((len(request), *manifest.model.latent), dtype=np.float32)
    request.fill_noise(slice(0, len(request)), noise)
    calls: list[Call] = []
    fields = {
        variant: _RecordingField(EngineField(backend, manifest, name, variant, request), text, variant, calls)
        for variant in manifest.programs[manifest.default_schedule]
    }
    variant = choose_variant(manifest, is_unguided=request.is_unguided)
    field: Any = ScheduledField(schedule, fields) if variant == "guided" else fields[variant]
    for _ in reference.sample(schedule, field, noise[:, None]):
        pass
    return calls


class _RecordingField:
    """A field that writes down its calls (sampling.steps.Field)."""

    def __init__(self, field: EngineField, schedule: str, variant: str, calls: list[Call]) -> None:
        self._field = field
        self._where = (schedule, variant)
        self._calls = calls

    def predict(self, x: Array, t: float) -> Array:
        return self._note("predictor", x, None, t, self._field.predict(x, t))

    def refine(self, x: Array, v: Array, t: float) -> Array:
        return self._note("refiner", x, v, t, self._field.refine(x, v, t))

    def _note(self, network: str, x: Array, v: Array | None, t: float, output: Array) -> Array:
        schedule, variant = self._where
        if not np.isfinite(output).all():
            raise CalibrationError(
                f"{schedule}: the {network} gives numbers that are not finite at t = {t:g}; look at the "
                "bundle with verify"
            )
        site = CallSite(schedule, len(self._calls), network, variant, t)
        self._calls.append(Call(site, x[:, 0].copy(), v, output))
        return output


def _write(path: Path, request: Request, calls: Sequence[Call], rows: int) -> None:
    tensors: dict[str, Any] = {name: values[:rows] for name, values in request.conditions.items()}
    tensors["guidance"] = request.guidance[:rows]
    for call in calls:
        tensors[f"{call.site.key}.state"] = call.state[:rows]
        tensors[f"{call.site.key}.output"] = call.output[:rows]
        if call.velocity is not None:
            tensors[f"{call.site.key}.velocity"] = call.velocity[:rows]
    try:
        path.write_bytes(save({name: np.ascontiguousarray(array) for name, array in tensors.items()}))
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be written ({error}); free some space") from error
