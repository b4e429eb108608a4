"""What requests to a served model ask for, row by row, and which rows can run together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.runtime.programs import choose_variant
from flowturbo_trt.runtime.request import Request, RequestError, make_request
from flowturbo_trt.sampling.schedule import ScheduleError

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class AskedRows:
    """The rows of one request, checked, and for each the schedule and the variant that serve it."""

    request: Request
    schedules: tuple[str, ...]
    variants: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.request)


@dataclass(frozen=True)
class Group:
    """Rows of several requests as one request; `origins` are (asker, row of the asker) for each."""

    schedule: str
    variant: str
    request: Request
    origins: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def askers(self) -> tuple[int, ...]:
        """Return whose rows these are, each once, in order."""
        return tuple(dict.fromkeys(asker for asker, _ in self.origins))

    def part(self, rows: slice) -> "Group":
        """Return a group of some of the rows."""
        return self._of(range(len(self))[rows])

    def filled(self, count: int) -> "Group":
        """Return a group of `count` rows: these, and the last one again for those that are lacking."""
        return self._of([min(row, len(self) - 1) for row in range(count)])

    def _of(self, rows: Sequence[int]) -> "Group":
        request = _rows([(self.request, row) for row in rows])
        return Group(self.schedule, self.variant, request, tuple(self.origins[row] for row in rows))


def read_rows(tensors: Tensors, manifest: Manifest, schedules: Sequence[str]) -> AskedRows:
    """Check a request's input tensors (rows,1): one per condition, `seed`, and optional ones.

    `guidance` is by default the bundle's, `schedule` the first of `schedules`, which are those that may be
    asked for. Raises RequestError, ScheduleError.
    """
    columns = {name: array.reshape(-1) for name, array in tensors.items()}
    conditions = {condition.name: columns[condition.name] for condition in manifest.model.conditions}
    seeds = columns["seed"].tolist()
    # A list is told in one line where an array is not.
    guidance = columns["guidance"].tolist() if "guidance" in columns else None
    request = make_request(manifest.model, conditions, seeds, guidance, None)
    asked = _schedules(columns.get("schedule"), len(request), schedules)
    # Of each row, not of the request: an image must not depend on who is asked for beside it.
    variants = tuple(choose_variant(manifest, is_unguided=bool(scale == 1)) for scale in request.guidance)
    return AskedRows(request, asked, variants)


def group_rows(asked: Mapping[int, AskedRows]) -> list[Group]:
    """Put rows of the same schedule and variant together, in the order they were asked for."""
    origins: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for asker, rows in asked.items():
        for row, key in enumerate(zip(rows.schedules, rows.variants, strict=True)):
            origins.setdefault(key, []).append((asker, row))
    return [
        Group(*key, _rows([(asked[asker].request, row) for asker, row in found]), tuple(found))
        for key, found in origins.items()
    ]


def _schedules(given: NDArray[Any] | None, rows: int, known: Sequence[str]) -> tuple[str, ...]:
    if given is None:
        return (known[0],) * rows
    if len(given) != rows:
        raise RequestError(f"{len(given)} schedules for {rows} images; give one schedule per image")
    asked = tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in given)
    for schedule in asked:
        if schedule not in known:
            raise ScheduleError(f"schedule {schedule!r} is not served; use {', '.join(known)}")
    return asked


def _rows(sources: Sequence[tuple[Request, int]]) -> Request:
    """Return one request of rows of others, which are checked already and have seeds."""
    return Request(
        {
            name: np.array([request.conditions[name][row] for request, row in sources])
            for name in sources[0][0].conditions
        },
        np.array([request.guidance[row] for request, row in sources]),
        tuple(request.seeds[row] for request, row in sources),
        None,
    )
