"""What a schedule will take: the evaluations it makes, times what each was measured to take.

    seconds = overhead + Σ evaluations of an engine × seconds of one

An engine's time is that of one evaluation more: whole calls with few and with many are measured in turn, on
any backend, so that what the runtime adds to an evaluation is part of it, and what it adds to a call (copies,
decoding) of the overhead.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from flowturbo_trt.calibration.tune.candidates import Space
from flowturbo_trt.calibration.tune.errors import TuneError
from flowturbo_trt.evaluation.speed.latency import QUIET_SECONDS, Call, Stability, Timing, measure
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import Request
from flowturbo_trt.sampling.program import Program
from flowturbo_trt.sampling.schedule import Schedule

FEW, MANY = 2, 10
# Guided at the first evaluation alone.
AT_FIRST = (0.0, 0.0)


@dataclass(frozen=True)
class LatencyModel:
    """Seconds of a call with `batch` rows: `overhead`, and of each evaluation by network and variant.

    `stable` when the times that it was fitted to were known well enough.
    """

    batch: int
    overhead: float
    evaluations: Mapping[str, float]
    stable: bool = True

    def ms(self, program: Program) -> float:
        """Return the milliseconds of an image."""
        engines = sum(n * self.evaluations[_name(*call)] for call, n in program.evaluations().items())
        return 1000 * (self.overhead + engines) / self.batch

    @classmethod
    def fit(cls, programs: Mapping[str, Program], seconds: Mapping[str, float], batch: int) -> "LatencyModel":
        """Fit the model to calls that were timed; raises TuneError where an engine takes no time."""
        names = sorted({_name(*call) for program in programs.values() for call in program.evaluations()})
        rows = [
            [1.0, *({_name(*c): n for c, n in p.evaluations().items()}.get(name, 0) for name in names)]
            for p in programs.values()
        ]
        found = np.linalg.lstsq(np.array(rows), np.array([seconds[name] for name in programs]), rcond=None)[0]
        overhead, *each = map(float, found)
        if min(each) <= 0:
            raise TuneError(
                f"an evaluation of the {names[int(np.argmin(each))]} came out at {1000 * min(each):.3g} ms: "
                "the machine is too busy to time engines; try again when it is quieter"
            )
        # Less than nothing is noise in the measurement of little.
        return cls(batch, max(0.0, overhead), dict(zip(names, each, strict=True)))


def probes(space: Space) -> Iterator[Schedule]:
    """Yield the schedules whose times tell those of every engine that candidates may use."""
    for guided in (None, AT_FIRST) if space.unguides else (None,):
        yield Schedule((("E", MANY),), guided=guided)
        if guided is None:
            yield Schedule((("E", FEW),))
        if space.refines:
            yield Schedule((("E", FEW), ("R", MANY // 2)), guided=guided)


def measure_engines(
    pipelines: Mapping[str, Pipeline], spaces: Mapping[str, Space], request: Request, stability: Stability
) -> dict[str, LatencyModel]:
    """Time probes of all bundles in turn, and fit a model to each."""
    schedules = {name: list(probes(space)) for name, space in spaces.items()}
    timings = time_calls(
        {
            f"{name} {schedule}": (pipelines[name], schedule)
            for name, found in schedules.items()
            for schedule in found
        },
        request,
        stability,
    )
    models = {}
    for name, found in schedules.items():
        # Probes may be larger than candidates.
        unbounded = replace(spaces[name], evaluations=MANY, refined=MANY)
        programs = {str(schedule): program for schedule in found if (program := unbounded.program(schedule))}
        seconds = {text: timings[f"{name} {text}"].median for text in programs}
        stable = all(timings[f"{name} {text}"].stable for text in programs)
        models[name] = replace(LatencyModel.fit(programs, seconds, len(request)), stable=stable)
    return models


def time_calls(
    calls: Mapping[str, tuple[Pipeline, Schedule]], request: Request, stability: Stability
) -> dict[str, Timing]:
    """Time one request along each schedule in turn, with images where there is a decoder."""
    pipeline = next(iter(calls.values()))[0]
    noise = np.empty((len(request), *pipeline.manifest.model.latent), dtype=np.float32)
    request.fill_noise(slice(0, len(request)), noise)
    # As noise: drawing it is the same work for every schedule, and of none of them.
    drawn = replace(request, noise=noise)
    bound: dict[str, Call] = {
        name: partial(p.generate, drawn, schedule, decode=p.manifest.model.image is not None)
        for name, (p, schedule) in calls.items()
    }
    several = len({id(p) for p, _ in calls.values()}) > 1
    return measure(bound, stability, pause=QUIET_SECONDS if several else 0.0)


def _name(network: str, variant: str) -> str:
    return f"{network} {variant}"
