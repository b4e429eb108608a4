"""Who takes turns in a case: engines on a target, torch eager, torch compiled."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from flowturbo_trt.benchmarks.gpu.cases import GUIDANCE, Case
from flowturbo_trt.benchmarks.gpu.targets import Target
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.speed.breakdown import breakdown
from flowturbo_trt.evaluation.speed.latency import Stability, measure
from flowturbo_trt.evaluation.torch_reference import WARM_UPS, TorchNetworks, TorchOptions
from flowturbo_trt.runtime.cuda_driver import open_device
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.programs import find_program
from flowturbo_trt.runtime.request import Request, make_request
from flowturbo_trt.sampling.program import Program

# How long engines alone and decoders' layouts are timed: they add to figures, and are none themselves.
SHORT = Stability(precision=0.05, at_least=6, at_least_seconds=0.5, seconds=8.0)


@dataclass(frozen=True)
class Work:
    """A case's request, with noise so that nobody has to make it, and its program."""

    case: Case
    request: Request
    program: Program
    device: str

    @classmethod
    def of(cls, case: Case, bundle: Bundle, device: str) -> "Work":
        model = bundle.manifest.model
        labels = {
            c.name: c.minimum + (97 * np.arange(case.batch)) % (c.maximum - c.minimum + 1)
            for c in model.conditions
        }
        request = make_request(model, labels, None, GUIDANCE, None)
        noise = np.empty((case.batch, *model.latent), dtype=np.float32)
        request.fill_noise(slice(0, case.batch), noise)
        program = find_program(bundle.manifest, case.schedule, "guided")
        return cls(case, replace(request, noise=noise), program, device)


class Contestant(Protocol):
    """One that runs a case; `facts` are what is known of it beside its time, for JSON."""

    conditioning: str
    facts: dict[str, Any]

    def latents(self) -> NDArray[np.float32]: ...

    def __call__(self) -> object:
        """Run the case, from noise on the host to images on the host."""
        ...

    def stages(self) -> dict[str, float] | None:
        """Return the milliseconds of each stage, None where they cannot be timed alone."""
        ...

    def close(self) -> None: ...


@dataclass
class Engines:
    """A bundle's engines on a target, loaded for one case."""

    conditioning: str
    work: Work
    pipeline: Pipeline
    bundle: Bundle
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, target: Target, bundle: Bundle, conditioning: str, work: Work) -> "Engines":
        """Load engines and make the first image; raises BackendError."""
        free = free_memory(work.device)
        started = time.perf_counter()
        pipeline = Pipeline(bundle, target.open(bundle, work.device))
        try:
            pipeline._backend.prepare(work.program)
            loaded = time.perf_counter()
            engines = cls(conditioning, work, pipeline, bundle)
            engines()
            finished = time.perf_counter()
            trajectory = pipeline._lanes.lane(work.program, work.case.batch, _nothing).trajectory
            engines.facts = {
                "load_seconds": loaded - started,
                "first_run_seconds": finished - loaded,
                "is_one_graph": trajectory.is_captured,
                "device_megabytes": None if free is None else (free - free_memory_now(work.device)) / 1e6,
            }
        except BaseException:
            pipeline.close()
            raise
        return engines

    def latents(self) -> NDArray[np.float32]:
        return self.pipeline.generate(self.work.request, self.work.case.schedule).latents

    def __call__(self) -> object:
        return self.pipeline.generate(self.work.request, self.work.case.schedule)

    def stages(self) -> dict[str, float] | None:
        work = self.work
        found = breakdown(
            self.pipeline._backend, self.bundle.manifest, work.program, work.case.batch, SHORT, decode=True
        )
        if found is None:
            return None
        alone = {name: 1000 * timing.median for name, timing in found.engines.items()}
        return {**alone, "rest": 1000 * found.whole.median - sum(alone.values())}

    def close(self) -> None:
        self.pipeline.close()


@dataclass
class Torch:
    """The same program in torch; its networks are kept from case to case."""

    conditioning: str
    work: Work
    networks: TorchNetworks
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, networks: TorchNetworks, work: Work) -> "Torch":
        """Compile what is not compiled, capture graphs, and take the time of both."""
        contestant = cls("fused", work, networks)
        held = allocated(work.device) - networks.weight_bytes
        started = time.perf_counter()
        networks.load(work.program, decode=True)
        loaded = time.perf_counter()
        before = compiled_graphs()
        first, *others = (_seconds(contestant) for _ in range(WARM_UPS))
        compiled, cached = (now - then for now, then in zip(compiled_graphs(), before, strict=True))
        contestant.facts = {
            "load_seconds": loaded - started,
            "first_run_seconds": first,
            "warm_up_seconds": sum(others),
            "graphs_compiled": compiled,
            "graphs_from_cache": cached,
            "channels_last": networks.options.channels_last,
            "device_megabytes": None if work.device == "cpu" else (_peak(contestant) - held) / 1e6,
        }
        return contestant

    def latents(self) -> NDArray[np.float32]:
        return self._run(decode=False)

    def __call__(self) -> object:
        return self._run(decode=True)

    def stages(self) -> dict[str, float] | None:
        return None

    def close(self) -> None:
        """Nothing is the case's own."""

    def _run(self, *, decode: bool) -> NDArray[Any]:
        work, request = self.work, self.work.request
        assert request.noise is not None
        return self.networks.run(
            work.program, request.noise, request.conditions, request.guidance, decode=decode
        )


def faster_layout(bundle: Bundle, options: TorchOptions, batch: int) -> bool:
    """Tell whether torch decodes faster with channels last."""
    state = np.random.default_rng(0).standard_normal((batch, *bundle.manifest.model.latent), dtype=np.float32)
    calls: dict[str, Callable[[], object]] = {
        str(last): partial(
            TorchNetworks(bundle, replace(options, compiled=False, channels_last=last)).evaluate,
            "decoder",
            None,
            {"state": state},
        )
        for last in (False, True)
    }
    timings = measure(calls, SHORT)
    return timings["True"].median < timings["False"].median


def compiled_graphs() -> tuple[int, int]:
    """Return how many graphs torch has compiled, and how many of them it found in its cache on the disk."""
    counters: Any = torch._dynamo.utils.counters
    return int(counters["stats"]["unique_graphs"]), int(counters["inductor"]["fxgraph_cache_hit"])


def free_memory(device: str) -> int | None:
    """Return the bytes that are free on a GPU, None on the CPU."""
    return None if device == "cpu" else free_memory_now(device)


def free_memory_now(device: str) -> int:
    # What torch holds for later use is in nobody's way, and is no contestant's.
    torch.cuda.empty_cache()
    found = open_device(device)
    try:
        return found.memory()[0]
    finally:
        found.close()


def allocated(device: str) -> int:
    """Return the bytes that torch has allocated on a GPU: weights, and what graphs and runs hold."""
    return 0 if device == "cpu" else torch.cuda.memory_allocated(device)


def _peak(contestant: Torch) -> int:
    """Return the most that torch has allocated within a run."""
    torch.cuda.reset_peak_memory_stats(contestant.work.device)
    contestant()
    return torch.cuda.max_memory_allocated(contestant.work.device)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _nothing() -> None:
    """Stand for what a lane's owner gives back before another is bound."""
