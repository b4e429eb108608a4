"""Which program a request runs: the bundle's own, or one lowered now from a schedule's text."""

from functools import lru_cache

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.runtime.request import RequestError
from flowturbo_trt.sampling.program import NOISE, Program
from flowturbo_trt.sampling.schedule import Schedule, ScheduleError
from flowturbo_trt.sampling.trace import trace


def choose_variant(manifest: Manifest, *, is_unguided: bool) -> str:
    """Return the variant that serves a request with guidance, or without any; raises RequestError."""
    variants = manifest.programs[manifest.default_schedule].keys()
    if is_unguided and "unguided" in variants:
        return "unguided"
    if "guided" not in variants:
        raise RequestError(
            "the bundle has unguided engines only; use guidance 1, or build it with --variant guided"
        )
    return "guided"


def find_program(manifest: Manifest, schedule: str | Schedule | None, variant: str) -> Program:
    """Return the program of a schedule (None: the bundle's default) that generates from noise.

    Raises ScheduleError for text that is no schedule, and for one that generation cannot use.
    """
    text = str(manifest.default_schedule if schedule is None else schedule)
    known = manifest.programs.get(text)
    # A table of that name which the bundle does not hold is another one.
    if isinstance(schedule, Schedule) and schedule.table not in (None, *manifest.tables):
        known = None
    if known is None:
        given = schedule if isinstance(schedule, Schedule) else manifest.schedule(text)
        program = _traced(given, variant)
    else:
        program = known[variant]
    if set(program.inputs) != {NOISE}:
        raise ScheduleError(f"{text}: its program needs {sorted(program.inputs)}, here is only {NOISE}")
    variants = manifest.programs[manifest.default_schedule].keys()
    if unbuilt := {variant for _, variant in program.evaluations()} - variants:
        raise ScheduleError(
            f"{text}: needs {min(unbuilt)} engines; build the bundle with --variant {min(unbuilt)}"
        )
    if program.span != (0, 1):
        raise ScheduleError(
            f"{text}: runs from {program.span[0]} to {program.span[1]}; generation needs 0 to 1"
        )
    return program


@lru_cache(maxsize=64)
def _traced(schedule: Schedule, variant: str) -> Program:
    return trace(schedule, variant)
