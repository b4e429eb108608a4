"""Where schedules evaluate networks: known before anything runs."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.runtime.programs import find_program
from flowturbo_trt.sampling import reference
from flowturbo_trt.sampling.program_json import to_json
from flowturbo_trt.sampling.reference import ScheduledField


@dataclass(frozen=True)
class CallSite:
    """An evaluation in a schedule: its index among the schedule's, which network's it is, and when."""

    schedule: str
    index: int
    network: str
    variant: str
    t: float

    @property
    def key(self) -> str:
        return f"{self.schedule}/{self.index}"


def find_sites(manifest: Manifest, schedules: Iterable[str], variant: str) -> tuple[CallSite, ...]:
    """Return the evaluations of some schedules, in their order, for requests that a variant serves.

    Raises ScheduleError.
    """
    sites: list[CallSite] = []
    for text in dict.fromkeys(schedules):
        schedule = manifest.schedule(text)
        found: list[CallSite] = []
        fields = {v: _NotingField(text, v, found) for v in manifest.programs[manifest.default_schedule]}
        field: Any = ScheduledField(schedule, fields) if variant == "guided" else fields[variant]
        for _ in reference.sample(schedule, field, 0.0):
            pass
        sites += found
    return tuple(sites)


class _NotingField:
    """A field of zeros that notes where it is evaluated (sampling.steps.Field)."""

    def __init__(self, schedule: str, variant: str, sites: list[CallSite]) -> None:
        self._schedule = schedule
        self._variant = variant
        self._sites = sites

    def predict(self, x: Any, t: float) -> float:
        return self._note("predictor", t)

    def refine(self, x: Any, v: Any, t: float) -> float:
        return self._note("refiner", t)

    def _note(self, network: str, t: float) -> float:
        self._sites.append(CallSite(self._schedule, len(self._sites), network, self._variant, t))
        return 0.0


def program_digests(manifest: Manifest, schedules: Iterable[str], variant: str) -> Mapping[str, str]:
    """Return the sha256 of each schedule's program: two tables of one name have the same text.

    Raises ScheduleError.
    """
    return {
        text: hashlib.sha256(
            json.dumps(to_json(find_program(manifest, text, variant)), sort_keys=True).encode()
        ).hexdigest()
        for text in schedules
    }
