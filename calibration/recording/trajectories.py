"""Recordings: what each network really sees along the trajectories that will be deployed.

A call is an evaluation of a network in a schedule. They come of the float32 graphs; classes take turns, all
of them where rows are enough, and so do guidance scales. A shard (files.py) holds conditions and guidance
(n) of its rows, and by CallSite.key of every call .state (n,C,H,W), a refiner's .velocity (n,G,C,H,W) and
.output (n,G,C,H,W).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.environment import versions
from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError, Progress, make_rows
from flowturbo_trt.calibration.recording import files
from flowturbo_trt.calibration.recording.call_sites import CallSite, find_sites, program_digests
from flowturbo_trt.calibration.recording.files import Shard, Tensors
from flowturbo_trt.calibration.recording.float32 import float32_view
from flowturbo_trt.evaluation.velocity.networks import EngineField
from flowturbo_trt.runtime.backend_onnxruntime import NAME, OnnxRuntimeBackend
from flowturbo_trt.runtime.programs import choose_variant, find_program
from flowturbo_trt.runtime.request import Request, RequestError, make_request
from flowturbo_trt.sampling import reference
from flowturbo_trt.sampling.reference import ScheduledField

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Call:
    """What a network saw at a call site, and what it gave.

    `state` is (n,C,H,W), `velocity` a refiner's (n,G,C,H,W), `output` (n,G,C,H,W), the conditional half
    first; an unguided network has G = 1.
    """

    site: CallSite
    state: Array
    velocity: Array | None
    output: Array


@dataclass(frozen=True)
class Rows:
    """Some rows of a recording: their conditions, guidance and noise, and all calls."""

    request: Request
    calls: tuple[Call, ...]

    def part(self, rows: slice | NDArray[np.int64]) -> "Rows":
        """Return some of the rows."""
        calls = (
            replace(
                call,
                state=call.state[rows],
                velocity=None if call.velocity is None else call.velocity[rows],
                output=call.output[rows],
            )
            for call in self.calls
        )
        return Rows(_part(self.request, rows), tuple(calls))


@dataclass(frozen=True)
class Recording:
    """A folder of shards, and where they come from.

    `sources` are the sha256 of the checkpoints, by recorded network, and `programs` those of the schedules'
    programs for requests of `variant`; `environment` are versions.
    """

    folder: Path
    sources: dict[str, str]
    guided_channels: int
    rows: int
    seed: int
    guidance: tuple[float, ...]
    variant: str
    programs: dict[str, str]
    shards: tuple[Shard, ...]
    sites: tuple[CallSite, ...]
    environment: dict[str, str]

    def __post_init__(self) -> None:
        if not self.shards or not self.sites or sum(shard.rows for shard in self.shards) != self.rows:
            raise CalibrationError(
                f"{self.folder}: holds {sum(shard.rows for shard in self.shards)} of {self.rows} rows, of "
                f"{len(self.sites)} calls; record again"
            )

    @property
    def schedules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(site.schedule for site in self.sites))

    def of(self, manifest: Manifest) -> "Recording":
        """Return this after making sure that it was recorded of a bundle's model; raises CalibrationError."""
        expected = sources_of(manifest)
        for network, sha256 in self.sources.items():
            if expected.get(network) != sha256:
                raise CalibrationError(
                    f"{self.folder}: was recorded of another {network} than the bundle's; record this one's"
                )
        channels = manifest.model.guidance.channels
        if self.guided_channels != channels:
            raise CalibrationError(
                f"{self.folder}: was recorded with {self.guided_channels} channels guided, the bundle guides "
                f"{channels}; record this one's"
            )
        for schedule, digest in program_digests(manifest, self.programs, self.variant).items():
            if self.programs[schedule] != digest:
                raise CalibrationError(
                    f"{self.folder}: was recorded with another {schedule} than the bundle's; record this "
                    "one's"
                )
        return self

    def read(self, manifest: Manifest) -> Iterator[Rows]:
        """Read the shards one by one, of a bundle's model only; raises CalibrationError."""
        for shard in self.of(manifest).shards:
            yield self._read(shard, manifest)

    def _read(self, shard: Shard, manifest: Manifest) -> Rows:
        tensors = files.read_shard(self.folder, shard)
        try:
            conditions = {c.name: tensors[c.name] for c in manifest.model.conditions}
            # The first evaluation of any schedule is of the noise.
            noise = tensors[f"{self.sites[0].key}.state"]
            request = make_request(manifest.model, conditions, None, tensors["guidance"], noise)
            calls = tuple(
                Call(
                    site,
                    tensors[f"{site.key}.state"],
                    tensors[f"{site.key}.velocity"] if site.network == "refiner" else None,
                    tensors[f"{site.key}.output"],
                )
                for site in self.sites
            )
        except (KeyError, RequestError) as error:
            raise CalibrationError(
                f"{self.folder / shard.file}: does not fit its description or the model ({error}); record "
                "again"
            ) from error
        return Rows(request, calls)


def sources_of(manifest: Manifest) -> dict[str, str]:
    """Return what tells a bundle's networks from others': the sha256 of their checkpoints."""
    return {name: about["sha256"] for name, about in manifest.sources.items() if name != "decoder"}


def record(
    bundle: Bundle,
    schedules: Sequence[str],
    folder: Path,
    *,
    rows: int,
    seed: int = 0,
    guidance: Sequence[float] = (),
    threads: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Recording:
    """Run schedules over `rows` rows on the float32 graphs, and write down every evaluation.

    In batches of the largest size that engines were built for, one shard each: never more than one in
    memory. `guidance` are the scales that take turns, by default the bundle's own. A recording that was
    in the folder is replaced. Raises CalibrationError, and what the bundle or a schedule is refused with.
    """
    if rows < 1 or not schedules:
        raise CalibrationError(f"{rows} rows of {len(schedules)} schedules, expected at least 1 of each")
    view = float32_view(bundle)
    manifest = view.manifest
    request = make_rows(manifest, rows, seed, guidance)
    # Of all rows: a batch that happens to be without guidance is recorded as all others are.
    variant = choose_variant(manifest, is_unguided=request.is_unguided)
    networks = _networks(manifest, schedules, variant)
    files.begin(folder)
    backend = OnnxRuntimeBackend(view, threads)
    batch = max(manifest.batches)
    shards: list[Shard] = []
    for start in range(0, rows, batch):
        part = _part(request, slice(start, start + batch))
        # Its calls are gone before the next batch runs.
        tensors = _tensors(part, _run_all(manifest, backend, schedules, variant, part))
        shards.append(files.write_shard(folder, len(shards), len(part), tensors))
        del tensors
        progress("recording trajectories", start + len(part), rows)
    recording = Recording(
        folder,
        {network: sha256 for network, sha256 in sources_of(manifest).items() if network in networks},
        manifest.model.guidance.channels,
        rows,
        seed,
        tuple(dict.fromkeys(request.guidance.tolist())),
        variant,
        dict(program_digests(manifest, schedules, variant)),
        tuple(shards),
        find_sites(manifest, schedules, variant),
        versions(),
    )
    files.finish(folder, shards, {k: v for k, v in asdict(recording).items() if k != "folder"})
    return recording


def open_recording(folder: Path) -> Recording:
    """Open a finished recording; raises CalibrationError."""
    data = files.read_description(folder)
    try:
        data["sites"] = tuple(CallSite(**site) for site in data["sites"])
        data["shards"] = tuple(Shard(**shard) for shard in data["shards"])
        data["guidance"] = tuple(data["guidance"])
        return Recording(folder, **data)
    except (KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(
            f"{folder}: holds no recording that can be read ({error}); record again"
        ) from error


def _networks(manifest: Manifest, schedules: Sequence[str], variant: str) -> set[str]:
    """Return the networks that schedules evaluate; raises ScheduleError, and BundleError for one missing."""
    evaluated = {e for text in schedules for e in find_program(manifest, text, variant).evaluations()}
    return {manifest.engine(network, of_variant, NAME).network for network, of_variant in evaluated}


def _part(request: Request, rows: slice | NDArray[np.int64]) -> Request:
    """Return some rows of a request."""
    chosen = np.arange(len(request))[rows]
    return Request(
        {name: values[rows] for name, values in request.conditions.items()},
        request.guidance[rows],
        tuple(request.seeds[row] for row in chosen),
        None if request.noise is None else request.noise[rows],
    )


def _run_all(
    manifest: Manifest, backend: OnnxRuntimeBackend, schedules: Sequence[str], variant: str, request: Request
) -> list[Call]:
    """Run schedules of a variant one after the other, and return their calls."""
    return [
        call for text in dict.fromkeys(schedules) for call in _run(manifest, backend, text, variant, request)
    ]


def _run(
    manifest: Manifest, backend: OnnxRuntimeBackend, text: str, variant: str, request: Request
) -> list[Call]:
    """Run a schedule of a variant, and return its calls."""
    schedule = manifest.schedule(text)
    noise = np.empty((len(request), *manifest.model.latent), dtype=np.float32)
    request.fill_noise(slice(0, len(request)), noise)
    calls: list[Call] = []
    fields = {
        v: _RecordingField(EngineField(backend, manifest, NAME, v, request), text, v, calls)
        for v in manifest.programs[manifest.default_schedule]
    }
    field: Any = ScheduledField(schedule, fields) if variant == "guided" else fields[variant]
    # With an axis for the halves of guidance, as the formulas' sums want it.
    for _ in reference.sample(schedule, field, noise[:, None]):
        pass
    return calls


class _RecordingField:
    """A field that writes down its calls (sampling.steps.Field)."""

    def __init__(self, field: EngineField, schedule: str, variant: str, calls: list[Call]) -> None:
        self._field = field
        self._where = (schedule, variant)
        self._calls = calls

    # States come as (n,1 or G,C,H,W); what counts in them is the conditional half.
    def predict(self, x: Array, t: float) -> Array:
        return self._note("predictor", x, None, t, self._field.predict(x, t))

    def refine(self, x: Array, v: Array, t: float) -> Array:
        return self._note("refiner", x, v, t, self._field.refine(x, v, t))

    def _note(self, network: str, x: Array, v: Array | None, t: float, output: Array) -> Array:
        schedule, variant = self._where
        if not np.isfinite(output).all():
            raise CalibrationError(
                f"{schedule}: the {variant} {network} gives numbers that are not finite at t = {t:g}; look "
                "at the bundle with `flowturbo_trt verify`"
            )
        site = CallSite(schedule, len(self._calls), network, variant, t)
        self._calls.append(Call(site, x[:, 0], v, output))
        return output


def _tensors(request: Request, calls: Sequence[Call]) -> Tensors:
    """Name the tensors of a shard."""
    tensors: dict[str, NDArray[Any]] = {**request.conditions, "guidance": request.guidance}
    for call in calls:
        tensors[f"{call.site.key}.state"] = call.state
        tensors[f"{call.site.key}.output"] = call.output
        if call.velocity is not None:
            tensors[f"{call.site.key}.velocity"] = call.velocity
    return tensors
