"""How far candidates end from the truth: every row is computed once, and none that the journal has."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.calibration.endpoints import Endpoints, endpoint_errors
from flowturbo_trt.calibration.tune.candidates import Candidate
from flowturbo_trt.calibration.tune.journal import Journal
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import Request

Errors = NDArray[np.float64]


class Trials:
    """Errors by candidate and row: the first `searched` rows are to search on, the rest to judge by."""

    def __init__(
        self, pipelines: Mapping[str, Pipeline], endpoints: Endpoints, searched: int, journal: Journal
    ) -> None:
        self._pipelines = pipelines
        self._endpoints = endpoints
        self._searched = searched
        self._journal = journal
        self._errors: dict[tuple[str, str], Errors] = {}

    def errors(self, candidate: Candidate, rows: int) -> Errors:
        """Return the errors (rows) of the first rows; ∞ where a trajectory did not stay finite."""
        known = self._errors.get(candidate.key, np.empty(0))
        if len(known) < rows:
            known = np.concatenate([known, self._part(candidate, len(known), rows)])
            self._errors[candidate.key] = known
        return known[:rows]

    def held_out(self, candidate: Candidate) -> Errors:
        """Return the errors of the rows that the search does not see: front and winner are chosen by them."""
        return self._part(candidate, self._searched, len(self._endpoints))

    def _part(self, candidate: Candidate, start: int, stop: int) -> Errors:
        key = ("errors", *candidate.key, start, stop)
        values: Sequence[float | None] | None = self._journal.get(key)
        if values is None:
            found = endpoint_errors(
                self._pipelines[candidate.engines],
                part(self._endpoints, slice(start, stop)),
                candidate.schedule,
            )
            values = [float(error) if math.isfinite(error) else None for error in found]
            self._journal.put(key, values)
        return np.array([math.inf if value is None else value for value in values])


def part(endpoints: Endpoints, rows: slice) -> Endpoints:
    """Return some rows of endpoints."""
    return Endpoints(part_of(endpoints.request, rows), endpoints.noise[rows], endpoints.latents[rows])


def part_of(request: Request, rows: slice) -> Request:
    """Return some rows of a request that has seeds."""
    conditions = {name: values[rows] for name, values in request.conditions.items()}
    return Request(conditions, request.guidance[rows], request.seeds[rows], None)
