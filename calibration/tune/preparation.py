"""What a search needs, found and checked before anything runs."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle, read_manifest
from flowturbo_trt.calibration.endpoints import make_rows
from flowturbo_trt.calibration.tune.candidates import Space
from flowturbo_trt.calibration.tune.errors import TuneError
from flowturbo_trt.calibration.tune.options import TuneOptions
from flowturbo_trt.evaluation.report import machine
from flowturbo_trt.runtime.backend import default_backend, default_device
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.programs import choose_variant, find_program
from flowturbo_trt.runtime.request import Request

# Of the predictor, in candidates: by default at least so many, and so many more than in the bundle's first
# schedule.
EVALUATIONS, MORE = 12, 2
# Of the options, what decides a search.
COUNTS = ("trajectories", "held_out", "refined", "start", "rounds", "children", "bands", "kept")


@dataclass(frozen=True)
class Place:
    """What runs a bundle's engines, and where."""

    backend: str
    device: str
    provider: str | None


@dataclass(frozen=True)
class Engines:
    """The engines of a bundle that take part, what may be tried on them, and a hash of their files."""

    path: Path
    place: Place
    precision: str
    pipeline: Pipeline
    space: Space
    sha256: str

    @property
    def bundle(self) -> Bundle:
        """The bundle as it was when the search began."""
        return Bundle(self.path, self.pipeline.manifest)


@dataclass(frozen=True)
class Preparation:
    """`request` holds the rows to search on and then those to judge on; `engines` by the bundles' names."""

    options: TuneOptions
    request: Request
    engines: Mapping[str, Engines]
    evaluations: int
    batch: int

    @property
    def pipelines(self) -> dict[str, Pipeline]:
        return {name: engines.pipeline for name, engines in self.engines.items()}

    @property
    def spaces(self) -> dict[str, Space]:
        return {name: engines.space for name, engines in self.engines.items()}

    @property
    def main(self) -> str:
        return next(iter(self.engines))

    @property
    def truest(self) -> str:
        """The engines that the true ends are computed on: the first in float32, else the bundle's own."""
        exact = (name for name, engines in self.engines.items() if engines.precision == "fp32")
        return next(exact, self.main)

    def settings(self) -> dict[str, Any]:
        """Return all that decides a search but for what it measures."""
        options = self.options
        return {
            "engines": {name: e.sha256 for name, e in self.engines.items()},
            "backends": {name: f"{e.place.backend} {e.precision}" for name, e in self.engines.items()},
            "devices": {name: e.place.device for name, e in self.engines.items()},
            "providers": {name: e.place.provider for name, e in self.engines.items()},
            "threads": options.threads or len(os.sched_getaffinity(0)),
            "machine": _processors({e.place.device for e in self.engines.values()}),
            "seed": options.seed,
            "guidance": sorted({float(scale) for scale in self.request.guidance}),
            "reference": options.reference,
            "evaluations": self.evaluations,
            "batch": self.batch,
            **{name: getattr(options, name) for name in COUNTS},
        }


@contextmanager
def prepared(options: TuneOptions) -> Iterator[Preparation]:
    """Open the bundles; raises TuneError, and what bundles, backends and requests raise."""
    paths = _named((options.bundle, *options.also))
    places = _places(paths, options)
    with ExitStack() as held:
        pipelines = {
            name: held.enter_context(_load(path, places[name], options.threads))
            for name, path in paths.items()
        }
        main = next(iter(pipelines.values())).manifest
        request = _rows(main, options)
        evaluations = _evaluations(main, options, is_unguided=request.is_unguided)
        engines = {}
        for name, pipeline in pipelines.items():
            path, backend = paths[name], places[name].backend
            _check_same_model(path, pipeline.manifest, main)
            space = _space(name, pipeline.manifest, backend, request, evaluations, options.refined)
            precision = pipeline.manifest.engine("predictor", space.variant, backend).precision
            engines[name] = Engines(
                path, places[name], precision, pipeline, space, _sha256(pipeline.manifest, backend)
            )
        found = Preparation(options, request, engines, evaluations, _batch(engines, options))
        _check_reference(found)
        yield found


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Return bundles by the names of their folders, by whole paths where those are taken.

    Raises TuneError for one that is there twice.
    """
    named: dict[str, Path] = {}
    for path in paths:
        full = path.resolve()
        if full in {other.resolve() for other in named.values()}:
            raise TuneError(f"{path}: is named twice; name each bundle once")
        named[full.name if full.name not in named else str(full)] = path
    return named


def _places(paths: Mapping[str, Path], options: TuneOptions) -> dict[str, Place]:
    """Return what runs each bundle, the first one by what was asked for.

    Others by that too where they have engines for the backend. Device and provider are of a backend: they say
    nothing of another one.
    """
    places: dict[str, Place] = {}
    for name, path in paths.items():
        manifest = read_manifest(path)
        first = next(iter(places.values()), None)
        backend, built = options.backend, {engine.backend for engine in manifest.engines}
        if backend is None or (first is not None and backend not in built):
            backend = default_backend(manifest)
        alike = first is None or backend == first.backend
        provider = options.provider if alike else None
        device = (options.device if alike else None) or default_device(backend, provider)
        places[name] = Place(backend, device, provider)
    return places


def _load(path: Path, place: Place, threads: int) -> Pipeline:
    return Pipeline.load(
        path, backend=place.backend, device=place.device, provider=place.provider, threads=threads
    )


def _rows(manifest: Manifest, options: TuneOptions) -> Request:
    """Return the rows to search on, shuffled so that the first are of all classes, and those to judge on."""
    search = make_rows(manifest, options.trajectories, options.seed, options.guidance)
    order = np.random.default_rng(options.seed).permutation(options.trajectories)
    judging = make_rows(manifest, options.held_out, options.seed + options.trajectories, options.guidance)
    return Request(
        {name: np.concatenate([v[order], judging.conditions[name]]) for name, v in search.conditions.items()},
        np.concatenate([search.guidance[order], judging.guidance]),
        (*(search.seeds[row] for row in order), *judging.seeds),
        None,
    )


def _check_same_model(path: Path, found: Manifest, expected: Manifest) -> None:
    """Raise TuneError unless two bundles are of the same networks, whatever their precision."""
    for name in ("family", "latent", "image", "conditions", "guidance", "config"):
        own, other = getattr(found.model, name), getattr(expected.model, name)
        if own != other:
            raise TuneError(f"{path}: is of another model ({name} {own}, expected {other}); leave it out")
    for name in found.sources.keys() & expected.sources.keys():
        own, other = found.sources[name].get("sha256", ""), expected.sources[name].get("sha256", "")
        if own != other:
            raise TuneError(
                f"{path}: is of another {name} (sha256 {own[:12]}, expected {other[:12]}); give a bundle "
                "that was built from the same checkpoints"
            )


def _space(
    name: str, manifest: Manifest, backend: str, request: Request, evaluations: int, refined: int
) -> Space:
    variant = choose_variant(manifest, is_unguided=request.is_unguided)
    built = {(e.network, e.variant) for e in manifest.engines if e.backend == backend}
    refines = ("refiner", variant) in built
    networks = ("predictor", "refiner") if refines else ("predictor",)
    unguides = variant == "guided" and all((network, "unguided") in built for network in networks)
    return Space(name, manifest, variant, refines, unguides, evaluations, refined)


def _evaluations(manifest: Manifest, options: TuneOptions, *, is_unguided: bool) -> int:
    if options.evaluations is not None:
        return options.evaluations
    # The schedule that it was built with stays the first: the default may be one that a search has found.
    first = next(iter(manifest.programs))
    program = find_program(manifest, first, choose_variant(manifest, is_unguided=is_unguided))
    return max(EVALUATIONS, MORE + len(program.times("predictor")))


def _batch(engines: Mapping[str, Engines], options: TuneOptions) -> int:
    """Return the rows that calls are timed with: a batch that all bundles were built for."""
    common = set.intersection(*(set(e.pipeline.manifest.batches) for e in engines.values()))
    batch = options.batch or max(common, default=0)
    if batch not in common:
        raise TuneError(
            f"batch {batch or 'of any size'}: not built in all bundles, which share "
            f"{', '.join(map(str, sorted(common))) or 'none'}; take one of these, or build another"
        )
    return batch


def _check_reference(found: Preparation) -> None:
    """Raise TuneError where the true ends would be no truer than candidates'."""
    engines, reference = found.engines[found.truest], found.options.reference
    program = find_program(engines.pipeline.manifest, reference, engines.space.variant)
    count = len(program.times("predictor"))
    if count <= found.evaluations or program.times("refiner"):
        raise TuneError(
            f"reference {reference}: has {count} evaluations of the predictor"
            f"{' and others of the refiner' if program.times('refiner') else ''}, candidates have up to "
            f"{found.evaluations}; give a finer one, e.g. H{2 * found.evaluations}, or fewer --evaluations"
        )


def _processors(devices: Set[str]) -> str:
    """Name what engines run on: times are of it alone."""
    found = machine()
    return ", ".join(sorted({str(found["cpu" if device == "cpu" else "gpu"]) for device in devices}))


def _sha256(manifest: Manifest, backend: str) -> str:
    """Hash what candidates run on: engines and tables, not the schedules that may be added later."""
    files = sorted(
        {file for engine in manifest.engines if engine.backend == backend for file in engine.files}
    )
    described = [*(manifest.files[file].sha256 for file in files), *map(repr, manifest.tables)]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()
