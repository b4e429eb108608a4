"""A bundle's speed: each schedule and batch timed, taken apart, and set beside torch."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from flowturbo_trt.bundle.manifest import Engine, Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.evaluation.speed.breakdown import Breakdown, breakdown
from flowturbo_trt.evaluation.speed.latency import (
    QUIET_SECONDS,
    Stability,
    Timing,
    measure,
)
from flowturbo_trt.evaluation.speed.startup import Startup, Work, measure_startup
from flowturbo_trt.runtime.backend import default_backend, default_device, load_backend
from flowturbo_trt.runtime.conditioning import needed_engines
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.programs import choose_variant, find_program
from flowturbo_trt.runtime.request import Request, make_request
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.program import Program
from flowturbo_trt.sampling.schedule import Schedule

# What a bundle can be set beside: name → whether torch compiles the networks.
ALTERNATIVES = {"torch": False, "torch-compile": True}
# What is reported while one case is measured, in order.
STAGES = ("getting ready", "timing", "timing the engines alone", "starting processes")


class BenchmarkError(FlowTurboError):
    """Something that cannot be measured here."""


@dataclass(frozen=True)
class BenchmarkOptions:
    """Which engines, how, and against which ALTERNATIVES.

    `backend`, `device` and `provider` are those of Pipeline.load; guidance None is the bundle's default.
    """

    backend: str | None = None
    device: str | None = None
    provider: str | None = None
    threads: int = 0
    guidance: float | None = None
    against: tuple[str, ...] = ()
    stability: Stability = field(default_factory=Stability)


@dataclass(frozen=True)
class Case:
    """One schedule at one batch size: the request, its program, and the engines that it takes."""

    schedule: Schedule
    request: Request
    variant: str
    program: Program
    engines: tuple[Engine, ...]
    decode: bool

    @property
    def batch(self) -> int:
        return len(self.request)

    @property
    def precision(self) -> str:
        return self.engines[0].precision

    def weight_bytes(self, manifest: Manifest) -> int:
        """Return the size of the engines' files, which are weights for the most part."""
        files = {file for engine in self.engines for file in engine.files}
        return sum(manifest.files[file].bytes for file in files)


@dataclass(frozen=True)
class Alternative:
    """Another runtime on the same program: its time, and how far its latents are from the engines'."""

    name: str
    timing: Timing | None = None
    relative_l2: float | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Measured:
    """What one case costs; `breakdown` is None on backends whose engines cannot be called alone."""

    case: Case
    timing: Timing
    breakdown: Breakdown | None
    startup: Startup
    weight_bytes: int
    alternatives: tuple[Alternative, ...]


class Benchmark:
    """Measures a bundle on one backend; raises FlowTurboError subclasses as pipelines do."""

    def __init__(self, bundle: Bundle, options: BenchmarkOptions) -> None:
        if options.against:
            require_torch()
            if not bundle.manifest.graphs:
                raise BenchmarkError(
                    f"{bundle.path}: torch takes its weights from the float32 graphs, which were stripped; "
                    "measure the bundle without --against, or build it without --strip"
                )
        # The same number for all: left to themselves, libraries take different ones.
        self._threads = options.threads or len(os.sched_getaffinity(0))
        self._bundle = bundle
        self._options = options
        self.backend = options.backend or default_backend(bundle.manifest)
        self.device = options.device or default_device(self.backend, options.provider)
        self._backend = load_backend(self.backend, bundle, self.device, self._threads, options.provider)
        self._pipeline = Pipeline(bundle, self._backend)
        self._networks: dict[tuple[str, str], Any] = {}

    def setting(self) -> dict[str, Any]:
        """Return where engines and alternatives run, with what was left open filled in."""
        return {"backend": self.backend, "device": self.device, "threads": self._threads}

    def case(self, schedule: Schedule, batch: int) -> Case:
        """Work out what a schedule at a batch size takes; raises when the bundle lacks it."""
        manifest, options = self._bundle.manifest, self._options
        first = {condition.name: [condition.minimum] * batch for condition in manifest.model.conditions}
        request = make_request(manifest.model, first, None, options.guidance, None)
        # As noise, so that everything measured starts from the same arrays.
        noise = np.empty((batch, *manifest.model.latent), dtype=np.float32)
        request.fill_noise(slice(0, batch), noise)
        variant = choose_variant(manifest, is_unguided=request.is_unguided)
        program = find_program(manifest, schedule, variant)
        decode = manifest.model.image is not None
        engines = tuple(
            manifest.engine(network, variant, self.backend, batch if variant else None)
            for network, variant in needed_engines(manifest, program, self.backend)
        )
        return Case(schedule, replace(request, noise=noise), variant, program, engines, decode)

    def measure(self, case: Case, say: Callable[[str], None]) -> Measured:
        """Measure one case; `say` is told each of STAGES as it begins."""
        stability, manifest = self._options.stability, self._bundle.manifest
        ours = partial(self._pipeline.generate, case.request, case.schedule, decode=case.decode)
        say(STAGES[0])
        latents = ours().latents
        alternatives = [self._prepare(name, case, latents) for name in self._options.against]
        say(STAGES[1])
        calls: dict[str, Callable[[], object]] = {"": ours}
        calls |= {a.name: self._call(a.name, case) for a in alternatives if a.failure is None}
        timings = measure(calls, stability, pause=QUIET_SECONDS if len(calls) > 1 else 0.0)
        say(STAGES[2])
        parts = breakdown(self._backend, manifest, case.program, case.batch, stability, decode=case.decode)
        say(STAGES[3])
        startup = measure_startup(self._work(case))
        timed = tuple(replace(a, timing=timings.get(a.name)) for a in alternatives)
        return Measured(case, timings[""], parts, startup, case.weight_bytes(manifest), timed)

    def _prepare(self, name: str, case: Case, latents: Any) -> Alternative:
        """Load and, where that is asked for, compile an alternative by running it once."""
        try:
            found = self._call(name, case, decode=False)()
            self._call(name, case)()
        except Exception as error:  # compilers fail in their own ways
            reason = " ".join(str(error).split())[:300]
            return Alternative(name, failure=f"{type(error).__name__}: {reason}")
        return Alternative(name, relative_l2=relative_l2(found, latents))

    def _call(self, name: str, case: Case, *, decode: bool | None = None) -> Callable[[], Any]:
        key = (name, case.precision)
        if key not in self._networks:
            module = import_module("flowturbo_trt.evaluation.torch_reference")
            options = module.TorchOptions(self.device, case.precision, ALTERNATIVES[name], self._threads)
            self._networks[key] = module.load_torch_networks(self._bundle, options)
        request = case.request
        inputs = (case.program, request.noise, request.conditions, request.guidance)
        return partial(self._networks[key].run, *inputs, decode=case.decode if decode is None else decode)

    def _work(self, case: Case) -> Work:
        return Work(
            path=str(self._bundle.path),
            backend=self.backend,
            device=self.device,
            provider=self._options.provider,
            threads=self._threads,
            schedule=str(case.schedule),
            batch=case.batch,
            guidance=float(case.request.guidance[0]),
            decode=case.decode,
        )


def require_torch() -> None:
    """Raise BenchmarkError where what the alternatives need is not installed."""
    try:
        import_module("flowturbo_trt.evaluation.torch_reference")
    except ModuleNotFoundError as error:
        if str(error.name).startswith("flowturbo_trt"):
            raise
        raise BenchmarkError(
            f"torch cannot be measured: {error.name} is not installed; pip install 'flowturbo_trt[export]'"
        ) from error
