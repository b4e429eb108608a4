"""Requests that differ in one thing each, and the pipelines that they are made with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.benchmarks.gpu.targets import Target
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.pipeline import Generated, Pipeline
from flowturbo_trt.runtime.request import Request, make_request

SCHEDULE = "H1P1R1"
# Of the shape of SCHEDULE: it needs no graph of its own.
RETIMED = "H1P1R1@0,0.2,0.7,1"
OTHER_SHAPE = "AB2x3"


@dataclass(frozen=True)
class Setting:
    """A bundle on a target's device; `rows` of a request are the largest batch it was built for."""

    target: Target
    bundle: Bundle
    device: str

    @property
    def rows(self) -> int:
        return max(self.bundle.manifest.batches)

    @property
    def path(self) -> Path:
        return self.bundle.path

    def pipeline(self) -> Pipeline:
        """Load everything anew; raises BackendError."""
        return Pipeline(self.bundle, self.target.open(self.bundle, self.device))

    def request(self, first_label: int = 0, first_seed: int = 0, guidance: float = 1.5) -> Request:
        model = self.bundle.manifest.model
        labels = {
            c.name: c.minimum + (first_label + np.arange(self.rows)) % (c.maximum - c.minimum + 1)
            for c in model.conditions
        }
        seeds = tuple(range(first_seed, first_seed + self.rows))
        return make_request(model, labels, seeds, guidance, None)


@dataclass(frozen=True)
class Asked:
    """What is asked for: a request under a schedule, and what is new in it."""

    what: str
    request: Request
    schedule: str = SCHEDULE

    def of(self, pipeline: Pipeline) -> Generated:
        return pipeline.generate(self.request, self.schedule)


def in_turn(setting: Setting) -> list[Asked]:
    """Return requests each of which is answered wrongly if anything of the one before is kept."""
    first = Asked("the first request", setting.request())
    return [
        first,
        Asked("other labels", setting.request(first_label=1)),
        Asked("the first request again", setting.request()),
        Asked("other seeds", setting.request(first_seed=100)),
        Asked("other guidance", setting.request(guidance=3.0)),
        Asked("other times", setting.request(), RETIMED),
        Asked("another schedule", setting.request(), OTHER_SHAPE),
        Asked("the first request at last", setting.request()),
    ]


def different_bytes(found: Generated, expected: Generated) -> int:
    """Count the bytes of latents and images that are not equal."""
    assert found.images is not None
    assert expected.images is not None
    return _unequal(found.latents, expected.latents) + _unequal(found.images, expected.images)


def _unequal(found: NDArray[Any], expected: NDArray[Any]) -> int:
    return int(np.count_nonzero(found.view(np.uint8) != expected.view(np.uint8)))


def made_once(make: Callable[[], Pipeline], asked: Asked) -> Generated:
    """Answer a request with a pipeline that has answered no other."""
    with make() as pipeline:
        return asked.of(pipeline)
