"""The cases of `make gpu-bench`, and which of them earlier slices have measured."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from flowturbo_trt.models.published import NAMED_MODELS
from flowturbo_trt.sampling.schedule import Schedule

GUIDANCE = 1.5
# A model that a CPU runs in no time, to try out the scripts themselves.
TINY = "tiny"
MODELS = (*NAMED_MODELS, TINY)
TORCH = ("torch", "torch-compile")


@dataclass(frozen=True)
class Case:
    """One program at one batch size in one precision."""

    model: str
    schedule: str
    batch: int
    precision: str

    def __str__(self) -> str:
        return f"{self.model} {self.schedule}, batch {self.batch}, {self.precision}"

    def is_that_of(self, entry: dict[str, Any]) -> bool:
        """Tell whether an entry of a result file is this case's."""
        return all(entry[name] == value for name, value in asdict(self).items())


def all_cases(
    model: str, schedules: Iterable[str], batches: Iterable[int], precisions: Iterable[str]
) -> list[Case]:
    """List cases so that those that share compiled networks follow each other."""
    ordered = product(precisions, batches, [str(Schedule.parse(text)) for text in schedules])
    return [Case(model, schedule, batch, precision) for precision, batch, schedule in ordered]


def unfinished(cases: list[Case], entries: list[dict[str, Any]], wanted: Iterable[str]) -> Iterator[Case]:
    """Yield the cases in which one of the wanted contestants has not been measured."""
    names = set(wanted)
    for case in cases:
        measured = (set(entry["contestants"]) for entry in entries if case.is_that_of(entry))
        if not any(names <= found for found in measured):
            yield case


def merge(entries: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Put a case's entry in the place of an older one; its contestants took turns in one run."""
    case = Case(new["model"], new["schedule"], new["batch"], new["precision"])
    kept = [entry for entry in entries if not case.is_that_of(entry)]
    return sorted([*kept, new], key=_order)


def _order(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry["model"], entry["schedule"], entry["precision"], entry["batch"]
